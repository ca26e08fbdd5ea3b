#pragma once

#include "../core/types.h"

// The only argument of the kernels: a struct passed by value, with one layout on the host, the CPU and the GPU. Strides
// count elements; the innermost is 1.

namespace openmythos {

// A slot is one of the N k (row, choice) pairs; a hidden unit is a row of gate and of up. MOE_MAX_ROWS and
// MOE_MAX_SLOTS are limits of the streamed kernels.
constexpr int MOE_MAX_ROWS = 16, MOE_MAX_SLOTS = 256, MOE_MAX_SHARED = 16, MOE_MAX_EXPERTS = 1024;

// Limits of one block of the routing kernel.
constexpr int ROUTE_MAX_ROWS = 16, ROUTE_MAX_CHOICES = 1024;

struct MoeRouteArgs {
    Matrix logits;
    const float* bias;  // null if absent
    int32_t *ids, *counts;
    float* weights;
    int64_t ids_stride, weights_stride;
    int32_t rows, experts, k;
    int32_t rows_per_block;
    int32_t add_counts;  // several blocks add to counts, which the caller has zeroed
    int32_t unused;
};

struct MoeShared {
    const void *gate, *up, *down;
    int64_t gate_stride, up_stride, down_stride;
    int32_t width;
    int32_t column;     // index of its first hidden unit among those of all shared experts
    int32_t end_block;  // end of its blocks in the first launch
    int32_t unused;
};

struct MoeExpertsArgs {
    Matrix x, out;
    const void *gate_up, *down;  // of the routed experts, see expert_weights()
    // Activations between the two launches: (slots, width) of the routed experts, then (rows, shared_width).
    void* act;
    const void* ids;
    const float* weights;
    int64_t ids_stride, weights_stride;
    int64_t gate_up_strides[3];  // expert, half, hidden unit
    int64_t down_strides[2];     // expert, column of the result
    int32_t ids_bytes;           // 4 or 8
    int32_t rows, k, slots, experts, d, width, shared_width, shared_count;
    int32_t shared_blocks;     // blocks of the shared experts, which come first in the first launch
    int32_t hidden_per_block;  // hidden units per block of the first launch
    int32_t aligned;           // all rows are 16-byte aligned, and all sizes multiples of 8
    MoeShared shared[MOE_MAX_SHARED];
};

// The matrices of one routed expert: gate and up (width, d), down (d, width).
struct ExpertWeights {
    Matrix gate, up, down;
};

// Every kernel finds a routed expert's matrices through this function, so that other storage changes only this.
__attribute__((always_inline)) static inline ExpertWeights expert_weights(const MoeExpertsArgs& p, int64_t expert) {
    const int64_t size = size_of(p.x.type);
    char* gate = static_cast<char*>(const_cast<void*>(p.gate_up)) + expert * p.gate_up_strides[0] * size;
    char* down = static_cast<char*>(const_cast<void*>(p.down)) + expert * p.down_strides[0] * size;
    return {{gate, p.gate_up_strides[2], p.x.type, 0},
            {gate + p.gate_up_strides[1] * size, p.gate_up_strides[2], p.x.type, 0},
            {down, p.down_strides[1], p.x.type, 0}};
}

// ids[row, choice].
__attribute__((always_inline)) static inline int64_t expert_id(const MoeExpertsArgs& p, int64_t row, int64_t choice) {
    const int64_t at = row * p.ids_stride + choice;
    return p.ids_bytes == 4 ? static_cast<const int32_t*>(p.ids)[at] : static_cast<const int64_t*>(p.ids)[at];
}

// The experts of many rows: a block computes 128 sorted slots (for shared experts, rows) by 128 columns of one expert.
constexpr int MOE_BLOCK = 128, MOE_BLOCK_THREADS = 256, MOE_MAX_CHUNKS = 64;

struct MoeTile {
    int32_t expert;      // -1: unused tile
    int32_t first, end;  // positions among the sorted slots
    int32_t unused;
};

struct MoeGroupedArgs {
    MoeExpertsArgs moe;  // its hidden_per_block is that of the grouped kernels
    MoeTile* tiles;
    int32_t* counts;        // (chunks, experts): slots of each chunk
    int32_t* slots;         // sorted by expert, then by slot
    void* y;                // (slots, d), then (rows, d) of the shared experts, in the type of x as act
    int32_t chunk, chunks;  // slots per block of the sort, and the number of blocks
    int32_t tile_count;     // upper bound
    int32_t unused;
};

}  // namespace openmythos
