#pragma once

#include "../core/types.h"

// The only argument of the kernels: a struct passed by value, with one layout on the host, the CPU and the GPU. Strides
// count elements; the innermost is 1.

namespace openmythos {

struct MlaArgs {
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
    int32_t columns;                                      // columns of out per block of the last launch
    float scale;                                          // times log2(e) for GPU kernels
    Type type;
};

// The number of keys of sequence b, at most `total`.
__attribute__((always_inline)) static inline int64_t sequence_length(const MlaArgs& p, int64_t b) {
    if (!p.seq_lens) return p.total;
    return p.wide_lens ? static_cast<const int64_t*>(p.seq_lens)[b] : static_cast<const int32_t*>(p.seq_lens)[b];
}

// 16-bit elements of shared memory for two stages. Each stage holds key tiles, nope then rope part, and a value tile,
// for `columns` keys; `columns` is also the width of a shared tile.
constexpr int mla_decompressed_elements(int columns, int dn, int dr, int dv) {
    return 2 * columns * ((dn + dr + columns - 1) / columns * columns + dv);
}

// Arguments of two kernels: the attention to each head's keys and values, and the gather of the latent that they are
// computed from.
struct MlaDecompressedArgs {
    const void *q_nope, *q_rope;
    const void *keys, *values;  // (b, keys, h dn) and, transposed, (b, h dv, keys), contiguous
    const void *latent, *k_rope;
    const void *seq_lens, *block_table;  // null: sequences are full; the cache is not paged
    void* gathered;                      // (b, padded, dc + dr), zero past a sequence's length
    void* out;
    float* lse;
    int64_t q_nope_b, q_nope_t, q_nope_h, q_rope_b, q_rope_t, q_rope_h, out_b, out_t, out_h, lse_b;
    int64_t latent_b, latent_s, k_rope_b, k_rope_s, table_b;  // as in MlaArgs
    int32_t b, t, h, dn, dr, dc, dv;                          // h: of this launch
    int32_t total, padded;                                    // keys of a full sequence; the same rounded up to 64
    int32_t page, causal, wide_lens, wide_table;
    float scale;  // times log2(e)
};

}  // namespace openmythos
