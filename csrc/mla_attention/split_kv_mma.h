#pragma once

#include "../core/gpu/fragments.h"
#include "split_kv.h"

namespace openmythos::gpu {

// Both products of a Tile (split_kv.h) by matrix instructions, for 16-bit types and ROW_TILES x 16 rows. A wave loads
// its columns of a tile of keys into registers once, as the operand of the scores, and transposes them for the values.
template <class T, int DC, int DR, int ROW_TILES>
struct MmaTile {
    // Where a wave duplicates fragments, 32 keys of many columns or rows do not fit the registers.
    static constexpr int ROWS = ROW_TILES * TILE;
    static constexpr int KEYS = Vendor::DUPLICATES_FRAGMENTS && (ROW_TILES > 1 || DC > 512) ? TILE : 2 * TILE;
    static constexpr int SLICE = DC / SPLIT_WAVES, COUNT = SLICE / TILE, KEY_TILES = KEYS / TILE;
    // Padded by eight so that rows begin in different banks.
    static constexpr int SCORES_STRIDE = KEYS + 8, STRIDE = KEYS + 8;
    // A block that is alone on its multiprocessor prefetches the next tile: no other block hides its loads.
    static constexpr bool AHEAD = !Vendor::DUPLICATES_FRAGMENTS && ROW_TILES > 1 && DC > 256;

    struct alignas(16) Shared {
        uint16_t probabilities[ROWS][STRIDE];
        uint16_t scratch[SPLIT_WAVES][Vendor::TRANSPOSE_SCRATCH];
    };
    struct Keys {
        Fragment latent[KEY_TILES][COUNT], rope[KEY_TILES][1];
    };

    Fragment queries[ROW_TILES][COUNT], q_rope[ROW_TILES];
    Keys keys, next;
    Accumulator out[ROW_TILES][COUNT];
    int wave;
    bool has_rope;  // each of the first waves has 16 columns of the rope part

    OPENMYTHOS_DEVICE MmaTile(const MlaArgs& p, const Split& split, Shared&) {
        wave = uniform(wave_index()), has_rope = wave < DR / TILE;
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) {
            const uint16_t *folded[FRAGMENT_ROWS], *rope[FRAGMENT_ROWS];
#pragma unroll
            for (int i = 0; i < FRAGMENT_ROWS; i++) {
                int row = split.first_row + m * TILE + fragment_row(i);
                if (row >= split.rows) row = split.rows - 1;
                folded[i] = static_cast<const uint16_t*>(p.folded) + (int64_t(split.batch) * split.rows + row) * DC +
                            wave * SLICE;
                rope[i] = static_cast<const uint16_t*>(p.q_rope) + split.batch * p.q_rope_b + row / p.h * p.q_rope_t +
                          row % p.h * p.q_rope_h + wave * TILE;
            }
            load_fragments(folded, queries[m]);
            q_rope[m] = {};
            if (has_rope) load_unaligned(rope, q_rope[m]);
#pragma unroll
            for (int c = 0; c < COUNT; c++) out[m][c] = {};
        }
        if (AHEAD && split.start < split.stop) load(p, split, split.start, keys);
    }

    OPENMYTHOS_DEVICE void load(const MlaArgs& p, const Split& split, int first, Keys& into) {
#pragma unroll
        for (int s = 0; s < KEY_TILES; s++) {
            const uint16_t *latent[FRAGMENT_ROWS], *rope[FRAGMENT_ROWS];
#pragma unroll
            for (int i = 0; i < FRAGMENT_ROWS; i++) {
                int key = first + s * TILE + fragment_row(i);
                const KeyPlace place = place_of(p, split.batch, key < split.stop ? key : split.stop - 1);
                latent[i] = latent_at<uint16_t>(p, place) + wave * SLICE;
                rope[i] = k_rope_at<uint16_t>(p, place) + wave * TILE;
            }
            load_fragments(latent, into.latent[s]);
            into.rope[s][0] = {};
            if (has_rope) load_fragments(rope, into.rope[s]);
        }
    }

    OPENMYTHOS_DEVICE void compute_scores(const MlaArgs& p, const Split& split, Shared&, int first,
                                          float* partial_scores) {
        if (!AHEAD) load(p, split, first, keys);
#pragma unroll
        for (int s = 0; s < KEY_TILES; s++) {
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) {
                Accumulator sum = {};
#pragma unroll
                for (int c = 0; c < COUNT; c++) mma<T>(sum, queries[m][c], keys.latent[s][c]);
                if (has_rope) mma<T>(sum, q_rope[m], keys.rope[s][0]);
#pragma unroll
                for (int i = 0; i < 8; i++)
                    partial_scores[(m * TILE + accumulator_row(i)) * SCORES_STRIDE + s * TILE + accumulator_column(i)] =
                        sum.x[i];
            }
        }
        if (AHEAD && first + KEYS < split.stop) load(p, split, first + KEYS, next);
    }

    template <int N>
    OPENMYTHOS_DEVICE static void store_probabilities(Shared& shared, int row, int key, const float (&x)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) shared.probabilities[row][key + i] = from_float<T>(x[i]).bits;
    }

    OPENMYTHOS_DEVICE void add_values(const MlaArgs&, const Split&, Shared& shared, int, const float* factors) {
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float factor = factors[m * TILE + accumulator_row(i)];
#pragma unroll
                for (int c = 0; c < COUNT; c++) out[m][c].x[i] *= factor;
            }
        }
#pragma unroll
        for (int s = 0; s < KEY_TILES; s++) {
            Fragment weights[ROW_TILES];
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++)
                weights[m] = load_shared(&shared.probabilities[m * TILE][s * TILE], STRIDE);
#pragma unroll
            for (int c = 0; c < COUNT; c++) {
                const Fragment columns = transpose(keys.latent[s][c], shared.scratch[wave]);
#pragma unroll
                for (int m = 0; m < ROW_TILES; m++) mma<T>(out[m][c], weights[m], columns);
            }
        }
        if (AHEAD) keys = next;
    }

    OPENMYTHOS_DEVICE void store_output(float* part, int rows, const float* factors) {
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
            for (int c = 0; c < COUNT; c++)
                store_accumulator<COUNT>(out[m][c], c, part + m * TILE * DC + wave * SLICE, DC, factors + m * TILE,
                                         [=](int row) { return m * TILE + row < rows; });
        }
    }
};

}  // namespace openmythos::gpu
