#pragma once

#include "../core/gpu/reduce.h"
#include "cache.h"

// Attention of a block of rows (token, head) to one split of the keys, with the latent as keys and values. Each of 8
// waves owns an eighth of the latent's columns for both products, so that the block reads each element once: a wave
// computes the scores' partial sums over its columns, the partial sums are added in shared memory, and the wave
// multiplies the probabilities by its own columns. A Tile defines the number of rows and keys, and both products.

namespace openmythos::gpu {

constexpr int SPLIT_WAVES = 8, SPLIT_THREADS = SPLIT_WAVES * WAVE;

// The rows of one block and the keys of its split.
struct Split {
    int batch, first_row, rows;  // `rows` counts all rows of the sequence
    int start, stop, length;
};

template <int ROWS, int KEYS>
OPENMYTHOS_DEVICE Split split_of(const MlaArgs& p) {
    Split x;
    x.rows = p.t * p.h;
    const int blocks = (x.rows + ROWS - 1) / ROWS;
    x.batch = block_index() / blocks, x.first_row = block_index() % blocks * ROWS;
    x.length = length_of(p, x.batch);
    const int size = ((x.length + p.splits - 1) / p.splits + KEYS - 1) / KEYS * KEYS;
    x.start = int64_t(block_index_y()) * size < x.length ? block_index_y() * size : x.length;
    x.stop = size < x.length - x.start ? x.start + size : x.length;
    if (p.causal) {
        // The last row of the block sees the most keys.
        int last = x.first_row + ROWS < x.rows ? x.first_row + ROWS : x.rows;
        int limit = x.length - p.t + (last - 1) / p.h + 1;
        if (limit < x.stop) x.stop = limit;
    }
    return x;
}

template <class T, class Tile>
OPENMYTHOS_DEVICE void split_kv(const MlaArgs& p) {
    constexpr int ROWS = Tile::ROWS, KEYS = Tile::KEYS, STRIDE = Tile::SCORES_STRIDE;
    constexpr int LANES = SPLIT_THREADS / ROWS, PER_THREAD = KEYS / LANES;  // threads per row, keys per thread
    static_assert(LANES <= WAVE && PER_THREAD >= 1 && KEYS % LANES == 0);
    __shared__ float partial_scores[SPLIT_WAVES][ROWS][STRIDE];
    __shared__ float factors[ROWS];
    __shared__ typename Tile::Shared shared;

    const Split split = split_of<ROWS, KEYS>(p);
    const int wave = wave_index(), my_row = thread_index() / LANES, my_key = thread_index() % LANES * PER_THREAD;
    const int row = split.first_row + my_row;
    int limit = row < split.rows ? split.length : 0;
    if (p.causal) limit = row < split.rows ? split.length - p.t + row / p.h + 1 : 0;

    Tile tile(p, split, shared);
    float max = MINUS_INFINITY, sum = 0.f;
    for (int first = split.start; first < split.stop; first += KEYS) {
        tile.compute_scores(p, split, shared, first, &partial_scores[wave][0][0]);
        sync_block();
        float s[PER_THREAD], tile_max = MINUS_INFINITY;
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++) {
            s[i] = 0.f;
#pragma unroll
            for (int w = 0; w < SPLIT_WAVES; w++) s[i] += partial_scores[w][my_row][my_key + i];
            s[i] = first + my_key + i < limit ? s[i] * p.scale : MINUS_INFINITY;
            tile_max = __builtin_fmaxf(tile_max, s[i]);
        }
        tile_max = wave_max<LANES / 2>(tile_max);
        const float next = __builtin_fmaxf(max, tile_max), safe = next == MINUS_INFINITY ? 0.f : next;
        const float factor = fast_exp2(max - safe);
        float tile_sum = 0.f;
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++) {
            s[i] = fast_exp2(s[i] - safe);
            tile_sum += s[i];
        }
        sum = fma(sum, factor, wave_sum<LANES / 2>(tile_sum));
        max = next;
        Tile::store_probabilities(shared, my_row, my_key, s);
        if (my_key == 0) factors[my_row] = factor;
        sync_block();
        tile.add_values(p, split, shared, first, factors);
    }

    sync_block();
    const int64_t at = (int64_t(split.batch) * p.splits + block_index_y()) * split.rows + split.first_row;
    if (my_key == 0) {
        // A log-sum-exp of -inf keeps the combination from reading this row of `part`, which an empty split leaves
        // undefined.
        factors[my_row] = sum == 0.f ? 0.f : 1.f / sum;
        if (row < split.rows) p.part_lse[at + my_row] = sum == 0.f ? MINUS_INFINITY : max + fast_log2(sum);
    }
    sync_block();
    if (split.start < split.stop) tile.store_output(p.part + at * p.dc, split.rows - split.first_row, factors);
}

}  // namespace openmythos::gpu
