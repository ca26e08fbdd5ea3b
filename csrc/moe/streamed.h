#pragma once

#include "routing.h"

// The weights and rows of a block in each launch, for few rows. The first slot that chose an expert is its leader: the
// leader's blocks serve all rows that chose the expert, so that its weights are read once.

namespace openmythos::gpu {

OPENMYTHOS_DEVICE const char* element(const void* p, Type type, int64_t at) {
    return static_cast<const char*>(p) + at * (type == Type::float32 ? 4 : 2);
}

// ---- the first launch: gate and up ------------------------------------------------------------------------------

// The hidden units of one expert, routed or shared, starting at `first`.
struct HiddenUnits {
    const void *gate, *up;
    int64_t gate_stride, up_stride;
    int first, width;
};

// In shared memory: the offset in `act` of each row's activations for the expert, -1 if the row did not choose it, and
// the factor by which they are multiplied.
struct ExpertTokens {
    int ids[MOE_MAX_SLOTS];
    int64_t offset[MOE_MAX_ROWS];
    float factor[MOE_MAX_ROWS];
};

// Returns false, in every thread of the block, if the block's slot is not a leader.
OPENMYTHOS_DEVICE bool find_hidden_units(const MoeExpertsArgs& p, HiddenUnits& hidden, ExpertTokens& tokens) {
    const int thread = thread_index();
    int block = block_index();
    if (block < p.shared_blocks) {
        int s = 0, begin = 0;
        while (block >= p.shared[s].end_block) begin = p.shared[s++].end_block;
        const MoeShared& expert = p.shared[s];
        hidden = {expert.gate, expert.up, expert.gate_stride, expert.up_stride, (block - begin) * p.hidden_per_block,
                  expert.width};
        if (thread < MOE_MAX_ROWS) {
            tokens.offset[thread] = thread < p.rows ? shared_offset(p, s) + int64_t(thread) * p.shared_width : -1;
            tokens.factor[thread] = 1.f;
        }
        sync_block();
        return true;
    }
    block -= p.shared_blocks;
    const int blocks = (p.width + p.hidden_per_block - 1) / p.hidden_per_block, slot = block / blocks;
    for (int s = thread; s < p.slots; s += block_threads()) tokens.ids[s] = expert_of(p, s);
    sync_block();
    const int expert = uniform(tokens.ids[slot]);
    bool earlier = expert < 0;
    for (int s = lane_index(); s < slot; s += WAVE) earlier |= tokens.ids[s] == expert;
    if (wave_ballot(earlier)) return false;
    if (thread < MOE_MAX_ROWS) {
        int64_t offset = -1;
        float factor = 0.f;
        for (int j = 0; thread < p.rows && j < p.k; j++) {
            if (tokens.ids[thread * p.k + j] != expert) continue;
            if (offset < 0) offset = int64_t(thread * p.k + j) * p.width;
            factor += p.weights[thread * p.weights_stride + j];
        }
        tokens.offset[thread] = offset, tokens.factor[thread] = factor;
    }
    sync_block();
    const char* gate = element(p.gate_up, p.x.type, expert * p.gate_up_strides[0]);
    hidden = {gate,
              element(gate, p.x.type, p.gate_up_strides[1]),
              p.gate_up_strides[2],
              p.gate_up_strides[2],
              (block - slot * blocks) * p.hidden_per_block,
              p.width};
    return true;
}

// ---- the second launch: down ------------------------------------------------------------------------------------

// In shared memory: the distinct experts in the order of their leading slots, and for each row the slot that holds its
// activations for the expert, or -1.
template <int ROWS>
struct DistinctExperts {
    int ids[MOE_MAX_SLOTS], expert[MOE_MAX_SLOTS];
    int16_t slot[MOE_MAX_SLOTS][ROWS];
    uint8_t leads[MOE_MAX_SLOTS];
    int count;
};

template <int ROWS>
OPENMYTHOS_DEVICE void find_distinct_experts(const MoeExpertsArgs& p, DistinctExperts<ROWS>& distinct) {
    const int thread = thread_index(), threads = block_threads();
    if (thread == 0) distinct.count = 0;
    for (int s = thread; s < p.slots; s += threads) distinct.ids[s] = expert_of(p, s);
    sync_block();
    for (int s = thread; s < p.slots; s += threads) {
        bool leads = distinct.ids[s] >= 0;
        for (int t = 0; t < s; t++) leads = leads && distinct.ids[t] != distinct.ids[s];
        distinct.leads[s] = leads;
    }
    sync_block();
    for (int s = thread; s < p.slots; s += threads) {
        int rank = 0;
        for (int t = 0; t < s; t++) rank += distinct.leads[t];
        if (distinct.leads[s]) distinct.expert[rank] = distinct.ids[s];
        if (s == p.slots - 1) distinct.count = rank + distinct.leads[s];
    }
    sync_block();
    for (int i = thread; i < distinct.count * ROWS; i += threads) {
        const int row = i % ROWS;
        int slot = -1;
        for (int j = p.k - 1; row < p.rows && j >= 0; j--)
            if (distinct.ids[row * p.k + j] == distinct.expert[i / ROWS]) slot = row * p.k + j;
        distinct.slot[i / ROWS][row] = int16_t(slot);
    }
    sync_block();
}

// The down matrix of an expert. The distinct routed experts come first, then the shared ones.
struct DownMatrix {
    const void* weights;
    int64_t stride;
    int width;
};

template <int ROWS>
OPENMYTHOS_DEVICE DownMatrix down_matrix(const MoeExpertsArgs& p, const DistinctExperts<ROWS>& distinct, int index) {
    if (index < distinct.count)
        return {element(p.down, p.x.type, uniform(distinct.expert[index]) * p.down_strides[0]), p.down_strides[1],
                p.width};
    const MoeShared& expert = p.shared[index - distinct.count];
    return {expert.down, expert.down_stride, expert.width};
}

// Offset in `act` of a row's activations for this expert, -1 if the row did not choose it.
template <int ROWS>
OPENMYTHOS_DEVICE int64_t act_offset(const MoeExpertsArgs& p, const DistinctExperts<ROWS>& distinct, int index,
                                     int row) {
    if (index >= distinct.count)
        return row < p.rows ? shared_offset(p, index - distinct.count) + int64_t(row) * p.shared_width : -1;
    const int slot = distinct.slot[index][row];
    return slot < 0 ? -1 : int64_t(slot) * p.width;
}

// A row with an id out of range becomes NaN: the host cannot check ids without waiting for the device.
template <int ROWS>
OPENMYTHOS_DEVICE float or_nan(const MoeExpertsArgs& p, const DistinctExperts<ROWS>& distinct, int row, float value) {
    for (int j = 0; j < p.k; j++)
        if (distinct.ids[row * p.k + j] < 0) value = __builtin_nanf("");
    return value;
}

}  // namespace openmythos::gpu
