#pragma once

#include <stdint.h>

// The only argument of each kernel: a struct passed by value, with the same layout on host and device. Strides count
// elements; the innermost is 1.

namespace openmythos::gpu {

enum class Type : int32_t { float32, bfloat16, float16 };
constexpr int TYPES = 3;

struct Rows {
    void* data;
    int64_t stride;
    Type type;
    int32_t unused;
};

struct RmsNormParams {
    Rows x, residual, out, sum;  // data is null if absent
    const void* weight;
    Type weight_type;
    int32_t aligned;  // all rows and the weight are 16-byte aligned, and d is a multiple of 8
    int64_t n;
    int32_t d;
    float eps;
};

struct LoopStepParams {
    Rows h, e, block_out, h_new, x_next;  // x_next.data is null in the last loop
    Rows h_out, h_out_new;                // float32
    const float *cum_p, *a, *b, *lora_down, *lora_scale, *lora_b, *halt_w, *halt_b, *norm_w;
    float* cum_p_new;
    const int32_t* t_rows;  // null: every row is at loop t
    int64_t n;
    int32_t d, rank, scale_rows, loop_dim, t;
    int32_t aligned;
    float threshold, eps;
    // -2 log2(theta) / loop_dim as the sum of two floats; times i it is the exponent of the i-th loop frequency.
    float frequency_hi, frequency_lo;
};

// The experts. A slot is one of the N k (row, choice) pairs; a hidden unit is a row of gate and of up. MOE_MAX_ROWS and
// MOE_MAX_SLOTS are limits of the streamed kernels.
constexpr int MOE_MAX_ROWS = 16, MOE_MAX_SLOTS = 256, MOE_MAX_SHARED = 16, MOE_MAX_EXPERTS = 1024;

// Limits of one block.
constexpr int ROUTE_MAX_ROWS = 16, ROUTE_MAX_CHOICES = 1024;

struct MoeRouteParams {
    Rows logits;
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
    int32_t column;     // its first hidden unit among those of all shared experts
    int32_t end_block;  // end of its blocks in the first launch
    int32_t unused;
};

struct MoeParams {
    Rows x, out;
    const void *gate_up, *down;
    // Activations between the two launches: (slots, width) of the routed experts, then (rows, shared_width).
    void* act;
    const void* ids;
    const float* weights;
    int64_t ids_stride, weights_stride;
    int64_t gate_up_strides[3];  // expert, half, hidden unit
    int64_t down_strides[2];     // expert, column of the result
    int32_t ids_bytes;           // 4 or 8
    int32_t rows, k, slots, experts, d, width, shared_width, shared_count;
    int32_t shared_blocks;     // in the first launch, before those of the slots
    int32_t hidden_per_block;  // of a block in the first launch
    int32_t aligned;           // all rows are 16-byte aligned, and all sizes multiples of 8
    MoeShared shared[MOE_MAX_SHARED];
};

// The experts of many rows: a block computes 128 rows, sorted slots or rows, times 128 columns of one expert.
constexpr int MOE_BLOCK = 128, MOE_BLOCK_THREADS = 256, MOE_MAX_CHUNKS = 64;

struct MoeTile {
    int32_t expert;      // -1: unused tile
    int32_t first, end;  // positions among the sorted slots
    int32_t unused;
};

struct MoeGroupedParams {
    MoeParams moe;  // with the hidden_per_block of these kernels
    MoeTile* tiles;
    int32_t* counts;        // (chunks, experts): slots of each chunk
    int32_t* slots;         // sorted by expert, then by slot
    void* y;                // (slots, d), then (rows, d) of the shared experts, in the type of x as act
    int32_t chunk, chunks;  // slots per block of the sort, and the number of blocks
    int32_t tile_count;     // upper bound
    int32_t unused;
};

struct MlaParams {
    const void *q_nope, *q_rope, *latent, *k_rope, *w_uk, *w_uv;
    void* out;
    float* lse;
    const void *seq_lens, *block_table;  // null: sequences are full; the cache is not paged
    void* folded;                        // [b][t h][dc], in the type of the tensors
    float *part, *part_lse;              // [b][splits][t h][dc] and [b][splits][t h], base 2
    int64_t q_nope_b, q_nope_t, q_nope_h, q_rope_b, q_rope_t, q_rope_h;
    int64_t latent_b, latent_s, k_rope_b, k_rope_s;  // _b: of a sequence or page; _s: of a key
    int64_t w_uk_h, w_uk_n, w_uv_h, w_uv_v, out_b, out_t, out_h, table_b;
    int32_t b, t, h, dn, dr, dc, dv;
    int32_t total;                                        // keys of a full sequence
    int32_t page, splits, causal, wide_lens, wide_table;  // wide: 64-bit integers
    int32_t columns;                                      // of out per block of the last launch
    float scale;                                          // times log2(e)
};

// 16-bit elements of shared memory for two stages, each with tiles of `columns` keys, nope then rope part, and one of
// values. `columns` is also the width of a shared tile.
constexpr int mla_decompressed_elements(int columns, int dn, int dr, int dv) {
    return 2 * columns * ((dn + dr + columns - 1) / columns * columns + dv);
}

// Attention to the keys and values of each head, and the gather of the latent that they are computed from.
struct MlaDecompressedParams {
    const void *q_nope, *q_rope;
    const void *keys, *values;  // (b, keys, h dn) and, transposed, (b, h dv, keys), contiguous
    const void *latent, *k_rope;
    const void *seq_lens, *block_table;  // null: sequences are full; the cache is not paged
    void* gathered;                      // (b, padded, dc + dr), zero from a sequence's length on
    void* out;
    float* lse;
    int64_t q_nope_b, q_nope_t, q_nope_h, q_rope_b, q_rope_t, q_rope_h, out_b, out_t, out_h, lse_b;
    int64_t latent_b, latent_s, k_rope_b, k_rope_s, table_b;  // as in MlaParams
    int32_t b, t, h, dn, dr, dc, dv;                          // h: of this launch
    int32_t total, padded;                                    // keys of a full sequence; the same rounded up to 64
    int32_t page, causal, wide_lens, wide_table;
    float scale;  // times log2(e)
};

}  // namespace openmythos::gpu
