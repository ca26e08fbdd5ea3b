#pragma once

#include "split_kv.h"

namespace openmythos::gpu {

// Both products by FMA, for any type. For the scores a lane has one key and all rows, for the values some columns and
// all rows.
template <class T, int DC, int DR>
struct FmaTile {
    static constexpr int ROWS = DC > 384 ? 8 : 16, KEYS = WAVE, SCORES_STRIDE = KEYS;
    static constexpr int SLICE = DC / SPLIT_WAVES, ROPE = DR / SPLIT_WAVES, COLUMNS = (SLICE + WAVE - 1) / WAVE;
    static constexpr int PER_LOAD = 16 / sizeof(T);  // elements

    struct alignas(16) Shared {
        float queries[ROWS][DC + DR];
        float probabilities[KEYS][ROWS];
        // Offsets of the keys. Double-buffered, since a slow wave may still read those of the previous tile.
        int64_t latent[2][KEYS];
    };

    float out[ROWS][COLUMNS];
    int lane, wave, parity;

    OPENMYTHOS_DEVICE FmaTile(const MlaArgs& p, const Split& split, Shared& shared) {
        lane = lane_index(), wave = wave_index(), parity = 0;
        for (int i = thread_index(); i < ROWS * (DC + DR); i += SPLIT_THREADS) {
            int r = i / (DC + DR), c = i % (DC + DR), row = split.first_row + r;
            if (row >= split.rows) row = split.rows - 1;
            const T* from = static_cast<const T*>(p.folded) + (int64_t(split.batch) * split.rows + row) * DC + c;
            if (c >= DC)
                from = static_cast<const T*>(p.q_rope) + split.batch * p.q_rope_b + row / p.h * p.q_rope_t +
                       row % p.h * p.q_rope_h + c - DC;
            shared.queries[r][c] = to_float(*from);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
            for (int i = 0; i < COLUMNS; i++) out[r][i] = 0.f;
        }
        sync_block();
    }

    // sums[r] += PER_LOAD elements of the key times those of query r.
    OPENMYTHOS_DEVICE static void products(const T* key, const float* queries, float (&sums)[ROWS]) {
        Words raw = load_cached(key);
        float x[PER_LOAD];
#pragma unroll
        for (int j = 0; j < PER_LOAD; j++) {
            if constexpr (sizeof(T) == 4)
                x[j] = __builtin_bit_cast(float, raw.w[j]);
            else
                x[j] = to_float(T{uint16_t(raw.w[j / 2] >> j % 2 * 16)});
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const float* q = queries + r * (DC + DR);
#pragma unroll
            for (int j = 0; j < PER_LOAD; j++) sums[r] = fma(x[j], q[j], sums[r]);
        }
    }

    OPENMYTHOS_DEVICE void compute_scores(const MlaArgs& p, const Split& split, Shared& shared, int first,
                                          float* partial_scores) {
        int key = first + lane < split.stop ? first + lane : split.stop - 1;
        const KeyPlace place = place_of(p, split.batch, key);
        const T *latent = latent_at<T>(p, place) + wave * SLICE, *rope = k_rope_at<T>(p, place);
        parity ^= 1;
        if (wave == 0) shared.latent[parity][lane] = latent - static_cast<const T*>(p.latent);
        float sums[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) sums[r] = 0.f;
#pragma unroll 1
        for (int c = 0; c < SLICE; c += PER_LOAD) products(latent + c, &shared.queries[0][wave * SLICE + c], sums);
        if (wave * PER_LOAD < DR) {
#pragma unroll 1
            for (int c = wave * PER_LOAD; c < DR; c += SPLIT_WAVES * PER_LOAD)
                products(rope + c, &shared.queries[0][DC + c], sums);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) partial_scores[r * SCORES_STRIDE + lane] = sums[r];
    }

    template <int N>
    OPENMYTHOS_DEVICE static void store_probabilities(Shared& shared, int row, int key, const float (&x)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) shared.probabilities[key + i][row] = x[i];
    }

    OPENMYTHOS_DEVICE void add_values(const MlaArgs& p, const Split& split, Shared& shared, int first,
                                      const float* factors) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float factor = factors[r];
#pragma unroll
            for (int i = 0; i < COLUMNS; i++) out[r][i] *= factor;
        }
        const int count = split.stop - first < KEYS ? split.stop - first : KEYS;
#pragma unroll 1
        for (int k = 0; k < count; k++) {
            const T* from = static_cast<const T*>(p.latent) + shared.latent[parity][k] + wave * SLICE + lane;
            float x[COLUMNS];
#pragma unroll
            for (int i = 0; i < COLUMNS; i++) x[i] = i * WAVE + lane < SLICE ? to_float(from[i * WAVE]) : 0.f;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float weight = shared.probabilities[k][r];
#pragma unroll
                for (int i = 0; i < COLUMNS; i++) out[r][i] = fma(weight, x[i], out[r][i]);
            }
        }
    }

    OPENMYTHOS_DEVICE void store_output(float* part, int rows, const float* factors) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
            for (int i = 0; i < COLUMNS; i++)
                if (r < rows && i * WAVE + lane < SLICE)
                    part[r * DC + wave * SLICE + i * WAVE + lane] = out[r][i] * factors[r];
        }
    }
};

}  // namespace openmythos::gpu
