#pragma once

#include "../core/gpu/row_product.h"
#include "cache.h"

// Attention of many new tokens to the keys and values of each head. A block has 128 queries of one head, 16 per wave;
// queries, scores, probabilities and output stay in registers. Tiles of keys and of transposed values pass through two
// stages of shared memory. The rope part of a key is shared by all heads and is read from the cache.

namespace openmythos::gpu {

constexpr int DECOMPRESSED_WAVES = 8, DECOMPRESSED_THREADS = DECOMPRESSED_WAVES * WAVE;
constexpr int DECOMPRESSED_ROWS = DECOMPRESSED_WAVES * TILE, DECOMPRESSED_STAGES = 2;

// Copies ROWS rows of WIDTH elements into swizzled tiles, starting at the tiles' column FIRST.
template <int ROWS, int WIDTH, int FIRST>
struct TileCopy {
    static constexpr unsigned CHUNKS_PER_ROW = WIDTH / CHUNK, TOTAL = ROWS * CHUNKS_PER_ROW;
    static constexpr unsigned COUNT = (TOTAL + DECOMPRESSED_THREADS - 1) / DECOMPRESSED_THREADS;
    AsyncCopy<COUNT> chunks;

    template <class Do>
    OPENMYTHOS_DEVICE static void for_each(uint16_t* tiles, Do what) {
        // Offsets are recomputed for every tile: keeping them would spill.
        const unsigned thread = unsigned(opaque_in_loop(thread_index()));
#pragma unroll
        for (unsigned i = 0; i < COUNT; i++) {
            const unsigned x = i * DECOMPRESSED_THREADS + thread;
            const int row = int(x / CHUNKS_PER_ROW), chunk = FIRST / CHUNK + int(x % CHUNKS_PER_ROW);
            if (TOTAL % DECOMPRESSED_THREADS == 0 || x < TOTAL)
                what(int(i), tiles + chunk / CHUNKS * ROWS * BLOCK_K + swizzled(row, chunk % CHUNKS), row,
                     int(x % CHUNKS_PER_ROW) * CHUNK);
        }
    }
    OPENMYTHOS_DEVICE void issue(uint16_t* tiles, const uint16_t* from, int64_t stride) {
        for_each(tiles, [&](int i, uint16_t* to, int row, int column) {
            chunks.issue(i, to, from + row * stride + column, true);
        });
    }
    OPENMYTHOS_DEVICE void commit(uint16_t* tiles) {
        for_each(tiles, [&](int i, uint16_t* to, int, int) { chunks.commit(i, to); });
    }
};

// Online softmax in base 2 of the lane's rows: the row's maximum, and this lane's part of the sum.
struct RunningSoftmax {
    float max[LANE_ROWS], sum[LANE_ROWS];

    OPENMYTHOS_DEVICE RunningSoftmax() {
#pragma unroll
        for (int r = 0; r < LANE_ROWS; r++) max[r] = MINUS_INFINITY, sum[r] = 0.f;
    }

    // Turns scores into 2^(score - max). `factors` rescale earlier results to the new maximum.
    template <int N>
    OPENMYTHOS_DEVICE void add(Accumulator (&scores)[N], float (&factors)[LANE_ROWS]) {
        float safe[LANE_ROWS];
#pragma unroll
        for (int r = 0; r < LANE_ROWS; r++) {
            float largest = MINUS_INFINITY;
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int i = 0; i < 8; i++)
                    if (lane_row(i) == r) largest = __builtin_fmaxf(largest, scores[n].x[i]);
            }
            const float next = __builtin_fmaxf(max[r], row_max(largest));
            safe[r] = next == MINUS_INFINITY ? 0.f : next;
            factors[r] = fast_exp2(max[r] - safe[r]);
            max[r] = next, sum[r] *= factors[r];
        }
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                scores[n].x[i] = fast_exp2(scores[n].x[i] - safe[lane_row(i)]);
                sum[lane_row(i)] += scores[n].x[i];
            }
        }
    }
};

// The index within the block of the query in the lane's r-th row.
OPENMYTHOS_DEVICE int query_row(int r) { return wave_index() * TILE + fragment_row(r); }

// The queries of the block. Recomputed at each use, since registers are scarce in the main loop.
struct QueryBlock {
    int batch, head, first_row;

    OPENMYTHOS_DEVICE explicit QueryBlock(const MlaDecompressedArgs& p) {
        const int index = uniform(opaque_in_loop(block_index())),
                  blocks = (p.t + DECOMPRESSED_ROWS - 1) / DECOMPRESSED_ROWS;
        // The last queries see the most keys, so they start first.
        first_row = (blocks - 1 - index % blocks) * DECOMPRESSED_ROWS;
        head = index / blocks % p.h, batch = index / blocks / p.h;
    }
    OPENMYTHOS_DEVICE int row(int r) const { return first_row + query_row(r); }
};

// BLOCKS: resident blocks per multiprocessor. With wgmma, a single resident block overlaps the scores of a tile with
// the softmax of the tile before; two blocks overlap each other.
template <class T, int DN, int DR, int DV, int BLOCKS>
struct DecompressedBlock {
    static constexpr int KEYS = BLOCK_K, KEY_TILES = (DN + DR + BLOCK_K - 1) / BLOCK_K;
    static constexpr int KEY_ELEMENTS = KEY_TILES * KEYS * BLOCK_K, STAGE = KEY_ELEMENTS + DV * BLOCK_K;
    static_assert(DECOMPRESSED_STAGES * STAGE == mla_decompressed_elements(BLOCK_K, DN, DR, DV));
#ifdef OPENMYTHOS_WGMMA
    static constexpr bool OVERLAPS = BLOCKS == 1;
#else
    static constexpr bool OVERLAPS = false;
#endif

    const MlaDecompressedArgs& p;
    uint16_t* const stages;
    // Keys below `unmasked` are visible to every row of the block.
    int unmasked, steps;
    const uint16_t *keys, *values, *k_rope;
    TileCopy<KEYS, DN, 0> key_copy;
    TileCopy<KEYS, DR, DN> rope_copy;
    TileCopy<DV, BLOCK_K, 0> value_copy;

    Fragment queries[(DN + DR) / TILE];
    RunningSoftmax softmax;
    Accumulator out[DV / TILE] = {};

    OPENMYTHOS_DEVICE explicit DecompressedBlock(const MlaDecompressedArgs& params)
        : p(params), stages(shared_tiles()) {
        const QueryBlock block(p);
        const int length = length_of(p, block.batch);
        const int end = block.first_row + DECOMPRESSED_ROWS < p.t ? block.first_row + DECOMPRESSED_ROWS : p.t;
        const int seen = p.causal ? length - p.t + end : length;
        unmasked = p.causal ? length - p.t + block.first_row + 1 : length;
        steps = seen > 0 ? (seen + KEYS - 1) / KEYS : 0;
        const int64_t sequence_head = int64_t(block.batch) * p.h + block.head;
        keys = static_cast<const uint16_t*>(p.keys) + int64_t(block.batch) * p.padded * key_stride() + block.head * DN;
        values = static_cast<const uint16_t*>(p.values) + sequence_head * DV * p.padded;
        k_rope = static_cast<const uint16_t*>(p.k_rope) + block.batch * p.k_rope_b;

        const uint16_t *nope[LANE_ROWS], *rope[LANE_ROWS];
#pragma unroll
        for (int r = 0; r < LANE_ROWS; r++) {
            const int row = block.row(r) < p.t ? block.row(r) : p.t - 1;
            nope[r] = static_cast<const uint16_t*>(p.q_nope) + block.batch * p.q_nope_b + row * p.q_nope_t +
                      block.head * p.q_nope_h;
            rope[r] = static_cast<const uint16_t*>(p.q_rope) + block.batch * p.q_rope_b + row * p.q_rope_t +
                      block.head * p.q_rope_h;
        }
#pragma unroll
        for (int k = 0; k < (DN + DR) / TILE; k++) {
            queries[k] = load_rows(k < DN / TILE ? nope : rope);
#pragma unroll
            for (int r = 0; r < LANE_ROWS; r++) (k < DN / TILE ? nope : rope)[r] += TILE;
        }
    }

    OPENMYTHOS_DEVICE int64_t key_stride() const { return p.h * DN; }

    OPENMYTHOS_DEVICE void load_keys(int tile, int stage) {
        uint16_t* const to = stages + stage * STAGE;
        const int64_t key = int64_t(tile) * KEYS;
        key_copy.issue(to, keys + key * key_stride(), key_stride());
        rope_copy.issue(to, k_rope + key * p.k_rope_s, p.k_rope_s);
    }
    OPENMYTHOS_DEVICE void load_values(int tile, int stage) {
        value_copy.issue(stages + stage * STAGE + KEY_ELEMENTS, values + int64_t(tile) * KEYS, p.padded);
    }
    OPENMYTHOS_DEVICE void commit(int stage) {
        uint16_t* const to = stages + stage * STAGE;
        key_copy.commit(to), rope_copy.commit(to), value_copy.commit(to + KEY_ELEMENTS);
    }

    // Scales, masks and exponentiates the scores of the tile at key `first`. A negative `first` masks everything.
    OPENMYTHOS_DEVICE void softmax_tile(Accumulator (&scores)[KEYS / TILE], int first,
                                        Fragment (&probabilities)[KEYS / TILE], float (&factors)[LANE_ROWS]) {
#pragma unroll
        for (int n = 0; n < KEYS / TILE; n++) {
#pragma unroll
            for (int i = 0; i < 8; i++) scores[n].x[i] *= p.scale;
        }
        if (first + KEYS > unmasked || (OVERLAPS && first < 0)) {
            int limits[LANE_ROWS];
#pragma unroll
            for (int r = 0; r < LANE_ROWS; r++)
                limits[r] = OVERLAPS && first < 0 ? first : p.causal ? unmasked + query_row(r) : unmasked;
#pragma unroll
            for (int n = 0; n < KEYS / TILE; n++) {
#pragma unroll
                for (int i = 0; i < 8; i++)
                    if (first + n * TILE + lane_column(i) >= limits[lane_row(i)]) scores[n].x[i] = MINUS_INFINITY;
            }
        }
        softmax.add(scores, factors);
#pragma unroll
        for (int n = 0; n < KEYS / TILE; n++) probabilities[n] = to_fragment(scores[n], pack2_probabilities<T>);
    }
    OPENMYTHOS_DEVICE void add_values(const Fragment (&probabilities)[KEYS / TILE], const float (&factors)[LANE_ROWS],
                                      const uint16_t* tiles) {
        // In a long sequence most tiles change no maximum of the wave's rows.
        bool changed = true;
        if constexpr (Vendor::SKIPS_RESCALING)
            changed = wave_ballot(factors[0] != 1.f || factors[LANE_ROWS - 1] != 1.f);
        if (changed) {
#pragma unroll
            for (int n = 0; n < DV / TILE; n++) {
#pragma unroll
                for (int i = 0; i < 8; i++) out[n].x[i] *= factors[lane_row(i)];
            }
        }
        start_row_products<T>(out, probabilities, tiles);
        wait_row_products(out);
    }

    OPENMYTHOS_DEVICE void run() {
        const auto commit_stage = [&](int stage) { commit(stage); };
        const auto load = [&](int step, int stage) { load_keys(step, stage), load_values(step, stage); };
        int first = 0;
        pipeline<DECOMPRESSED_STAGES>(steps, load, commit_stage, [&](int stage) {
            const uint16_t* const from = stages + stage * STAGE;
            Accumulator scores[KEYS / TILE] = {};
            start_row_products<T>(scores, queries, from);
            wait_row_products(scores);
            Fragment probabilities[KEYS / TILE];
            float factors[LANE_ROWS];
            softmax_tile(scores, first, probabilities, factors);
            add_values(probabilities, factors, from + KEY_ELEMENTS);
            first += KEYS;
        });
    }

    // A stage holds the keys of a tile and the values of the one before. One extra iteration: the first value tile is
    // zero and fully masked, and the last scores are discarded. A branch instead would serialise wgmma.
    OPENMYTHOS_DEVICE void run_overlapped() {
        for (int i = thread_index(); i < DV * CHUNKS; i += DECOMPRESSED_THREADS)
            store_words(stages + KEY_ELEMENTS + i * CHUNK, Words{});
        const auto commit_stage = [&](int stage) { commit(stage); };
        const auto load = [&](int step, int stage) {
            if (step < steps) load_keys(step, stage);
            if (step > 0) load_values(step - 1, stage);
        };
        Accumulator scores[KEYS / TILE] = {};
        int first = -KEYS;
        pipeline<DECOMPRESSED_STAGES>(steps ? steps + 1 : 0, load, commit_stage, [&](int stage) {
            const uint16_t* const from = stages + stage * STAGE;
            Accumulator next[KEYS / TILE] = {};
            start_row_products<T>(next, queries, from);
            Fragment probabilities[KEYS / TILE];
            float factors[LANE_ROWS];
            softmax_tile(scores, first, probabilities, factors);
            // Must come before add_values: ptxas serialises wgmma if other accumulators are used while it is pending.
            wait_row_products(next);
            add_values(probabilities, factors, from + KEY_ELEMENTS);
#pragma unroll
            for (int n = 0; n < KEYS / TILE; n++) scores[n] = next[n];
            first += KEYS;
        });
    }

    OPENMYTHOS_DEVICE void store() {
        const QueryBlock block(p);
        float inverse[LANE_ROWS];
        uint16_t* to[LANE_ROWS];
#pragma unroll
        for (int r = 0; r < LANE_ROWS; r++) {
            const int row = block.row(r);
            const float sum = row_sum(softmax.sum[r]);
            inverse[r] = sum == 0.f ? 0.f : 1.f / sum;
            to[r] = static_cast<uint16_t*>(p.out) + block.batch * p.out_b + row * p.out_t + block.head * p.out_h;
            if (p.lse && leads_rows() && row < p.t)
                p.lse[block.batch * p.lse_b + int64_t(block.head) * p.t + row] =
                    sum == 0.f ? MINUS_INFINITY : (softmax.max[r] + fast_log2(sum)) * 0.693147181f;
        }
#pragma unroll
        for (int n = 0; n < DV / TILE; n++) {
#pragma unroll
            for (int i = 0; i < 8; i++) out[n].x[i] *= inverse[lane_row(i)];
            store_rows(to_fragment(out[n], pack2<T>), to, [&](int r) { return block.row(r) < p.t; });
#pragma unroll
            for (int r = 0; r < LANE_ROWS; r++) to[r] += TILE;
        }
    }
};

template <class T, int DN, int DR, int DV, int BLOCKS>
OPENMYTHOS_DEVICE void decompressed_attention(const MlaDecompressedArgs& p) {
    DecompressedBlock<T, DN, DR, DV, BLOCKS> block(p);
    if constexpr (block.OVERLAPS)
        block.run_overlapped();
    else
        block.run();
    block.store();
}

}  // namespace openmythos::gpu
