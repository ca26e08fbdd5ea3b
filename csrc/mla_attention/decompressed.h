#pragma once

#include "../core/gpu/row_product.h"
#include "split_kv.h"

// Attention of many new tokens to keys and values of every head. A block has 128 queries of one head, 16 a wave, in
// registers with their scores, probabilities and results; tiles of keys and of values, the latter transposed, pass
// through two stages of shared memory. The rope part of a key is the same for all heads, and is read from where it is.

namespace openmythos::gpu {

constexpr int PREFILL_WAVES = 8, PREFILL_THREADS = PREFILL_WAVES * WAVE, PREFILL_ROWS = PREFILL_WAVES * TILE;
constexpr int PREFILL_STAGES = 2;

// ROWS rows of WIDTH numbers on their way into slabs, where they begin at number FIRST of each row.
template <int ROWS, int WIDTH, int FIRST>
struct Panel {
    static constexpr unsigned EACH = WIDTH / CHUNK, ALL = ROWS * EACH;
    static constexpr unsigned COUNT = (ALL + PREFILL_THREADS - 1) / PREFILL_THREADS;
    AsyncCopy<COUNT> chunks;

    template <class Do>
    OPENMYTHOS_DEVICE static void for_each(uint16_t* slabs, Do what) {
        // Places are worked out again for every tile: kept, they would take more registers than there are.
        const unsigned thread = unsigned(opaque_in_loop(thread_index()));
#pragma unroll
        for (unsigned i = 0; i < COUNT; i++) {
            const unsigned x = i * PREFILL_THREADS + thread;
            const int row = int(x / EACH), chunk = FIRST / CHUNK + int(x % EACH);
            if (ALL % PREFILL_THREADS == 0 || x < ALL)
                what(int(i), slabs + chunk / CHUNKS * ROWS * BLOCK_K + swizzled(row, chunk % CHUNKS), row,
                     int(x % EACH) * CHUNK);
        }
    }
    OPENMYTHOS_DEVICE void begin(uint16_t* slabs, const uint16_t* from, int64_t stride) {
        for_each(slabs, [&](int i, uint16_t* to, int row, int column) {
            chunks.issue(i, to, from + row * stride + column, true);
        });
    }
    OPENMYTHOS_DEVICE void land(uint16_t* slabs) {
        for_each(slabs, [&](int i, uint16_t* to, int, int) { chunks.commit(i, to); });
    }
};

// What is known of a lane's rows so far: the largest score, and of the sum of the powers of two what this lane has
// seen.
struct RunningSoftmax {
    float most[LANE_ROWS], sum[LANE_ROWS];

    OPENMYTHOS_DEVICE RunningSoftmax() {
#pragma unroll
        for (int r = 0; r < LANE_ROWS; r++) most[r] = MINUS_INFINITY, sum[r] = 0.f;
    }

    // Scores become powers relative to the largest score, and `factors` are what makes older ones so.
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
            const float next = __builtin_fmaxf(most[r], row_max(largest));
            safe[r] = next == MINUS_INFINITY ? 0.f : next;
            factors[r] = fast_exp2(most[r] - safe[r]);
            most[r] = next, sum[r] *= factors[r];
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

// The lane's r-th row among those of the block.
OPENMYTHOS_DEVICE int block_row(int r) { return wave_index() * TILE + fragment_row(r); }

// The queries of a block, worked out whenever they are asked for: registers are short while keys stream.
struct PrefillPlace {
    int batch, head, first_row;

    OPENMYTHOS_DEVICE explicit PrefillPlace(const MlaPrefillParams& p) {
        const int index = uniform(opaque_in_loop(block_index())), blocks = (p.t + PREFILL_ROWS - 1) / PREFILL_ROWS;
        // The last queries see most keys: they go first.
        first_row = (blocks - 1 - index % blocks) * PREFILL_ROWS;
        head = index / blocks % p.h, batch = index / blocks / p.h;
    }
    OPENMYTHOS_DEVICE int row(int r) const { return first_row + block_row(r); }
};

// BLOCKS: how many share a multiprocessor. One that is alone asks wgmma for the scores of a tile before it turns those
// of the tile before into probabilities, so that the tensor cores have something to do meanwhile.
template <class T, int DN, int DR, int DV, int BLOCKS>
struct Prefill {
    static constexpr int KEYS = BLOCK_K, SLABS = (DN + DR + BLOCK_K - 1) / BLOCK_K;
    static constexpr int KEY_NUMBERS = SLABS * KEYS * BLOCK_K, STAGE = KEY_NUMBERS + DV * BLOCK_K;
    static_assert(PREFILL_STAGES * STAGE == mla_prefill_elements(BLOCK_K, DN, DR, DV));
#ifdef OPENMYTHOS_WGMMA
    static constexpr bool AHEAD = BLOCKS == 1;
#else
    static constexpr bool AHEAD = false;
#endif

    const MlaPrefillParams& p;
    uint16_t* const memory;
    // Keys that the first row sees, all of the block's rows see; the last row sees all that any of them does.
    int clear, steps;
    const uint16_t *keys, *values, *k_rope;
    Panel<KEYS, DN, 0> key_panel;
    Panel<KEYS, DR, DN> rope_panel;
    Panel<DV, BLOCK_K, 0> value_panel;

    Fragment queries[(DN + DR) / TILE];
    RunningSoftmax softmax;
    Accumulator out[DV / TILE] = {};

    OPENMYTHOS_DEVICE explicit Prefill(const MlaPrefillParams& params) : p(params), memory(shared_tiles()) {
        const PrefillPlace place(p);
        const int length = length_of(p, place.batch);
        const int end = place.first_row + PREFILL_ROWS < p.t ? place.first_row + PREFILL_ROWS : p.t;
        const int seen = p.causal ? length - p.t + end : length;
        clear = p.causal ? length - p.t + place.first_row + 1 : length;
        steps = seen > 0 ? (seen + KEYS - 1) / KEYS : 0;
        const int64_t sequence_head = int64_t(place.batch) * p.h + place.head;
        keys = static_cast<const uint16_t*>(p.keys) + int64_t(place.batch) * p.padded * key_stride() + place.head * DN;
        values = static_cast<const uint16_t*>(p.values) + sequence_head * DV * p.padded;
        k_rope = static_cast<const uint16_t*>(p.k_rope) + place.batch * p.k_rope_b;

        const uint16_t *nope[LANE_ROWS], *rope[LANE_ROWS];
#pragma unroll
        for (int r = 0; r < LANE_ROWS; r++) {
            const int row = place.row(r) < p.t ? place.row(r) : p.t - 1;
            nope[r] = static_cast<const uint16_t*>(p.q_nope) + place.batch * p.q_nope_b + row * p.q_nope_t +
                      place.head * p.q_nope_h;
            rope[r] = static_cast<const uint16_t*>(p.q_rope) + place.batch * p.q_rope_b + row * p.q_rope_t +
                      place.head * p.q_rope_h;
        }
#pragma unroll
        for (int k = 0; k < (DN + DR) / TILE; k++) {
            queries[k] = load_rows(k < DN / TILE ? nope : rope);
#pragma unroll
            for (int r = 0; r < LANE_ROWS; r++) (k < DN / TILE ? nope : rope)[r] += TILE;
        }
    }

    OPENMYTHOS_DEVICE int64_t key_stride() const { return p.h * DN; }

    OPENMYTHOS_DEVICE void begin_keys(int tile, int stage) {
        uint16_t* const to = memory + stage * STAGE;
        const int64_t key = int64_t(tile) * KEYS;
        key_panel.begin(to, keys + key * key_stride(), key_stride());
        rope_panel.begin(to, k_rope + key * p.k_rope_s, p.k_rope_s);
    }
    OPENMYTHOS_DEVICE void begin_values(int tile, int stage) {
        value_panel.begin(memory + stage * STAGE + KEY_NUMBERS, values + int64_t(tile) * KEYS, p.padded);
    }
    OPENMYTHOS_DEVICE void land(int stage) {
        uint16_t* const to = memory + stage * STAGE;
        key_panel.land(to), rope_panel.land(to), value_panel.land(to + KEY_NUMBERS);
    }

    // Scores of the tile that begins at key `first` become probabilities. No row sees keys below zero.
    OPENMYTHOS_DEVICE void soften(Accumulator (&scores)[KEYS / TILE], int first, Fragment (&probabilities)[KEYS / TILE],
                                  float (&factors)[LANE_ROWS]) {
#pragma unroll
        for (int n = 0; n < KEYS / TILE; n++) {
#pragma unroll
            for (int i = 0; i < 8; i++) scores[n].x[i] *= p.scale;
        }
        if (first + KEYS > clear || (AHEAD && first < 0)) {
            int limits[LANE_ROWS];
#pragma unroll
            for (int r = 0; r < LANE_ROWS; r++)
                limits[r] = AHEAD && first < 0 ? first : p.causal ? clear + block_row(r) : clear;
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
                                      const uint16_t* slabs) {
        // Most tiles of a long sequence raise no maximum of the wave's rows.
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
        start_row_products<T>(out, probabilities, slabs);
        wait_row_products(out);
    }

    OPENMYTHOS_DEVICE void run() {
        const auto landed = [&](int stage) { land(stage); };
        const auto begin = [&](int step, int stage) { begin_keys(step, stage), begin_values(step, stage); };
        int first = 0;
        pipeline<PREFILL_STAGES>(steps, begin, landed, [&](int stage) {
            const uint16_t* const from = memory + stage * STAGE;
            Accumulator scores[KEYS / TILE] = {};
            start_row_products<T>(scores, queries, from);
            wait_row_products(scores);
            Fragment probabilities[KEYS / TILE];
            float factors[LANE_ROWS];
            soften(scores, first, probabilities, factors);
            add_values(probabilities, factors, from + KEY_NUMBERS);
            first += KEYS;
        });
    }

    // A stage has the keys of a tile and the values of the one before. Before the first tile there is one of zeros that
    // no row sees, and what is multiplied after the last one nobody asks for: a branch would make wgmma wait.
    OPENMYTHOS_DEVICE void run_ahead() {
        for (int i = thread_index(); i < DV * CHUNKS; i += PREFILL_THREADS)
            store_words(memory + KEY_NUMBERS + i * CHUNK, Words{});
        const auto landed = [&](int stage) { land(stage); };
        const auto begin = [&](int step, int stage) {
            if (step < steps) begin_keys(step, stage);
            if (step > 0) begin_values(step - 1, stage);
        };
        Accumulator scores[KEYS / TILE] = {};
        int first = -KEYS;
        pipeline<PREFILL_STAGES>(steps ? steps + 1 : 0, begin, landed, [&](int stage) {
            const uint16_t* const from = memory + stage * STAGE;
            Accumulator next[KEYS / TILE] = {};
            start_row_products<T>(next, queries, from);
            Fragment probabilities[KEYS / TILE];
            float factors[LANE_ROWS];
            soften(scores, first, probabilities, factors);
            // Not later: ptxas lets nothing else touch sums while there are products under way.
            wait_row_products(next);
            add_values(probabilities, factors, from + KEY_NUMBERS);
#pragma unroll
            for (int n = 0; n < KEYS / TILE; n++) scores[n] = next[n];
            first += KEYS;
        });
    }

    OPENMYTHOS_DEVICE void store() {
        const PrefillPlace place(p);
        float inverse[LANE_ROWS];
        uint16_t* to[LANE_ROWS];
#pragma unroll
        for (int r = 0; r < LANE_ROWS; r++) {
            const int row = place.row(r);
            const float sum = row_sum(softmax.sum[r]);
            inverse[r] = sum == 0.f ? 0.f : 1.f / sum;
            to[r] = static_cast<uint16_t*>(p.out) + place.batch * p.out_b + row * p.out_t + place.head * p.out_h;
            if (p.lse && leads_rows() && row < p.t)
                p.lse[place.batch * p.lse_b + int64_t(place.head) * p.t + row] =
                    sum == 0.f ? MINUS_INFINITY : (softmax.most[r] + fast_log2(sum)) * 0.693147181f;
        }
#pragma unroll
        for (int n = 0; n < DV / TILE; n++) {
#pragma unroll
            for (int i = 0; i < 8; i++) out[n].x[i] *= inverse[lane_row(i)];
            store_rows(to_fragment(out[n], pack2<T>), to, [&](int r) { return place.row(r) < p.t; });
#pragma unroll
            for (int r = 0; r < LANE_ROWS; r++) to[r] += TILE;
        }
    }
};

template <class T, int DN, int DR, int DV, int BLOCKS>
OPENMYTHOS_DEVICE void mla_prefill(const MlaPrefillParams& p) {
    Prefill<T, DN, DR, DV, BLOCKS> prefill(p);
    if constexpr (prefill.AHEAD)
        prefill.run_ahead();
    else
        prefill.run();
    prefill.store();
}

}  // namespace openmythos::gpu
