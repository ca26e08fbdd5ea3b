#pragma once

#include <stdint.h>

// What the host hands to each kernel: one struct by value, read alike by both sides. Strides count elements; the last
// one is 1.

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
    Rows x, residual, out, sum;  // data is null where there is none
    const void* weight;
    Type weight_type;
    int32_t aligned;  // every row and the weight begin at 16 bytes, and d is a multiple of 8
    int64_t n;
    int32_t d;
    float eps;
};

struct LoopStepParams {
    Rows h, e, block_out, h_new, x_next;  // x_next.data is null on the last loop
    Rows h_out, h_out_new;                // of float32
    const float *cum_p, *a, *b, *lora_down, *lora_scale, *lora_b, *halt_w, *halt_b, *norm_w;
    float* cum_p_new;
    const int32_t* t_rows;  // null: every row is at loop t
    int64_t n;
    int32_t d, rank, scale_rows, loop_dim, t;
    int32_t aligned;
    float threshold, eps;
    // -2 log2(theta) / loop_dim in two floats: the exponent of the i-th frequency of the loop embedding is i times it.
    float frequency_hi, frequency_lo;
};

// The experts. A slot is one of the N k choices of an expert; a hidden unit is a row of gate and of up. MOE_MAX_ROWS
// and MOE_MAX_SLOTS are for the kernels of few rows.
constexpr int MOE_MAX_ROWS = 16, MOE_MAX_SLOTS = 256, MOE_MAX_SHARED = 16, MOE_MAX_EXPERTS = 1024;

// A block chooses for so many rows at most, and makes so many choices.
constexpr int ROUTE_MAX_ROWS = 16, ROUTE_MAX_CHOICES = 1024;

struct MoeRouteParams {
    Rows logits;
    const float* bias;  // null where there is none
    int32_t *ids, *counts;
    float* weights;
    int64_t ids_stride, weights_stride;
    int32_t rows, experts, k;
    int32_t rows_per_block;
    int32_t add_counts;  // to what is in counts, since there are several blocks
    int32_t unused;
};

struct MoeShared {
    const void *gate, *up, *down;
    int64_t gate_stride, up_stride, down_stride;
    int32_t width;
    int32_t column;     // where its hidden units begin among those of all shared experts
    int32_t end_block;  // of the first launch
    int32_t unused;
};

struct MoeParams {
    Rows x, out;
    const void *gate_up, *down;
    // Activations between the two launches: (slots, width), of which a row has one for each expert that it chose, and
    // after them (rows, shared_width).
    void* act;
    const void* ids;
    const float* weights;
    int64_t ids_stride, weights_stride;
    int64_t gate_up_strides[3];  // expert, half, hidden unit
    int64_t down_strides[2];     // expert, column of the result
    int32_t ids_bytes;           // 4 or 8
    int32_t rows, k, slots, experts, d, width, shared_width, shared_count;
    int32_t shared_blocks;     // of the first launch: they come before those of the slots
    int32_t hidden_per_block;  // in the first launch
    int32_t aligned;           // every row begins at 16 bytes, and every size is a multiple of 8
    MoeShared shared[MOE_MAX_SHARED];
};

// The experts of many rows: a block has 128 rows of one expert, sorted slots or rows, and 128 columns of a product.
constexpr int MOE_BLOCK = 128, MOE_BLOCK_THREADS = 256, MOE_MAX_CHUNKS = 64;

struct MoeTile {
    int32_t expert;      // -1: there are fewer tiles
    int32_t first, end;  // positions among the sorted slots
    int32_t unused;
};

struct MoeGroupedParams {
    MoeParams moe;  // hidden_per_block and what follows from it are those of these kernels
    MoeTile* tiles;
    int32_t* counts;        // (chunks, experts): slots of each chunk
    int32_t* slots;         // by position: sorted by expert, in order within each
    void* y;                // (slots, d), then (rows, d) of the shared experts; like act in the type of x
    int32_t chunk, chunks;  // slots that a block sorts, and how many blocks
    int32_t tile_count;     // at most so many tiles
    int32_t unused;
};

struct MlaParams {
    const void *q_nope, *q_rope, *latent, *k_rope, *w_uk, *w_uv;
    void* out;
    float* lse;
    const void *seq_lens, *block_table;  // null: every sequence is full; the cache is not paged
    void* folded;                        // [b][t h][dc], in the type of the tensors
    float *part, *part_lse;              // [b][splits][t h][dc] and [b][splits][t h], logarithms to base 2
    int64_t q_nope_b, q_nope_t, q_nope_h, q_rope_b, q_rope_t, q_rope_h;
    int64_t latent_b, latent_s, k_rope_b, k_rope_s;  // from one sequence, or page, to the next; from key to key
    int64_t w_uk_h, w_uk_n, w_uv_h, w_uv_v, out_b, out_t, out_h, table_b;
    int32_t b, t, h, dn, dr, dc, dv;
    int32_t total;                                        // keys of a full sequence
    int32_t page, splits, causal, wide_lens, wide_table;  // wide: of 64 bits
    int32_t columns;                                      // of out for each block of the combination: 16 or more
    float scale;                                          // log2(e) is in it
};

// 16-bit elements of shared memory for two stages of `columns` keys, which is also the width of a shared tile: tiles of
// keys with their rope part behind, and one of values.
constexpr int mla_prefill_elements(int columns, int dn, int dr, int dv) {
    return 2 * columns * ((dn + dr + columns - 1) / columns * columns + dv);
}

// Attention over keys and values of every head, and what gathers the latent that they are made from.
struct MlaPrefillParams {
    const void *q_nope, *q_rope;
    const void *keys, *values;  // (b, keys, h dn) and, transposed, (b, h dv, keys), contiguous
    const void *latent, *k_rope;
    const void *seq_lens, *block_table;  // null: every sequence is full; the cache is not paged
    void* gathered;                      // (b, padded, dc + dr): zero from a sequence's length on
    void* out;
    float* lse;
    int64_t q_nope_b, q_nope_t, q_nope_h, q_rope_b, q_rope_t, q_rope_h, out_b, out_t, out_h, lse_b;
    int64_t latent_b, latent_s, k_rope_b, k_rope_s, table_b;  // as in MlaParams
    int32_t b, t, h, dn, dr, dc, dv;                          // h: heads of this launch
    int32_t total, padded;                                    // keys of a full sequence; a multiple of 64 of them
    int32_t page, causal, wide_lens, wide_table;
    float scale;  // log2(e) is in it
};

}  // namespace openmythos::gpu
