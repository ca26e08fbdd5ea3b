#pragma once

#include "streamed.h"

// The experts by FMA: one row of any type, and up to 16 rows of float32 or of sizes that do not vectorise. A wave reads
// its weights once, 256 columns at a time, and multiplies them with every row that chose the expert.

namespace openmythos::gpu {

// Eight 16-byte aligned elements at a time. Weights are read once, activations by many blocks.
template <class T>
struct Vectors {
    // Iterations whose loads are in flight together.
    static constexpr int AHEAD_UP = 8 / sizeof(T), AHEAD_DOWN = 4 / sizeof(T);
    OPENMYTHOS_DEVICE static void weights(const void* row, Type, int i, int, float (&x)[VEC]) {
        load_vector(static_cast<const T*>(row) + i, x);
    }
    OPENMYTHOS_DEVICE static void rows(const void* row, Type, int i, int, float (&x)[VEC]) {
        Words raw[sizeof(T) / 2];
#pragma unroll
        for (int j = 0; j < int(sizeof(T) / 2); j++)
            raw[j] = load_cached(static_cast<const T*>(row) + i + 16 / sizeof(T) * j);
        unpack<T>(raw, x);
    }
    OPENMYTHOS_DEVICE static void store(void* p, Type, int64_t at, float x) {
        static_cast<T*>(p)[at] = from_float<T>(x);
    }
};

// Any type, alignment and size.
struct Elements {
    static constexpr int AHEAD_UP = 1, AHEAD_DOWN = 1;
    OPENMYTHOS_DEVICE static void weights(const void* row, Type type, int i, int left, float (&x)[VEC]) {
        AnyRow{const_cast<void*>(row), type}.load(i, left, x);
    }
    OPENMYTHOS_DEVICE static void rows(const void* row, Type type, int i, int left, float (&x)[VEC]) {
        weights(row, type, i, left, x);
    }
    OPENMYTHOS_DEVICE static void store(void* p, Type type, int64_t at, float x) { store_any(p, type, at, x); }
};

constexpr int VECTOR_THREADS = 256;

// A wave computes HIDDEN hidden units.
template <class Data, int ROWS, int HIDDEN>
OPENMYTHOS_DEVICE void streamed_up_fma(const MoeExpertsArgs& p) {
    constexpr int COUNT = 2 * HIDDEN * ROWS, LANES = WAVE / COUNT, AHEAD = ROWS == 1 ? Data::AHEAD_UP : 1;
    __shared__ ExpertTokens tokens;
    HiddenUnits hidden;
    if (!find_hidden_units(p, hidden, tokens)) return;
    const int first = hidden.first + uniform(wave_index()) * HIDDEN, lane = lane_index();
    if (first >= hidden.width) return;
    const Type type = p.x.type;
    const uint32_t active = ROWS == 1 ? 1 : wave_ballot(lane < ROWS && tokens.offset[lane % ROWS] >= 0);
    const char *gate[HIDDEN], *up[HIDDEN];
#pragma unroll
    for (int h = 0; h < HIDDEN; h++) {
        const int64_t unit = first + h < hidden.width ? first + h : hidden.width - 1;
        gate[h] = element(hidden.gate, type, unit * hidden.gate_stride);
        up[h] = element(hidden.up, type, unit * hidden.up_stride);
    }
    float sums[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) sums[i] = 0.f;
#pragma unroll AHEAD
    for (int i = lane * VEC; i < p.d; i += WAVE * VEC) {
        float w[2 * HIDDEN][VEC];
#pragma unroll
        for (int h = 0; h < HIDDEN; h++) {
            Data::weights(gate[h], type, i, p.d - i, w[2 * h]);
            Data::weights(up[h], type, i, p.d - i, w[2 * h + 1]);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (ROWS > 1 && !(active >> r & 1)) continue;
            float x[VEC];
            Data::rows(element(p.x.data, type, r * p.x.stride), type, i, p.d - i, x);
#pragma unroll
            for (int v = 0; v < 2 * HIDDEN; v++) {
                float& sum = sums[(v / 2 * ROWS + r) * 2 + v % 2];
#pragma unroll
                for (int j = 0; j < VEC; j++) sum = fma(w[v][j], x[j], sum);
            }
        }
    }
    // The sums for gate and up of one hidden unit are LANES lanes apart.
    const float sum = wave_sums(sums), other = from_lane_xor<LANES>(sum);
    const int index = lane / LANES, r = index / 2 % ROWS, unit = first + index / (2 * ROWS);
    if (lane % (2 * LANES) != 0 || unit >= hidden.width || tokens.offset[r] < 0) return;
    Data::store(p.act, type, tokens.offset[r] + unit, swiglu(sum, other) * tokens.factor[r]);
}

// A block computes COLUMNS columns of the result. Its waves take steps of the hidden units of all experts in turn.
template <class Data, int ROWS, int COLUMNS>
OPENMYTHOS_DEVICE void streamed_down_fma(const MoeExpertsArgs& p) {
    constexpr int COUNT = COLUMNS * ROWS, STEP = WAVE * VEC, WAVES = VECTOR_THREADS / WAVE;
    constexpr int AHEAD = ROWS == 1 ? Data::AHEAD_DOWN : 1;
    __shared__ DistinctExperts<ROWS> distinct;
    __shared__ float partial[WAVES * COUNT];
    find_distinct_experts(p, distinct);
    const int first = block_index() * COLUMNS, lane = lane_index();
    const int count = uniform(distinct.count) + p.shared_count;
    const Type type = p.x.type;
    float sums[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) sums[i] = 0.f;
    int step = uniform(wave_index());
    for (int expert = 0; expert < count; expert++) {
        const DownMatrix down = down_matrix(p, distinct, expert);
        const int steps = (down.width + STEP - 1) / STEP;
        const int64_t mine = act_offset(p, distinct, expert, lane % ROWS);
        const uint32_t active = ROWS == 1 ? 1 : wave_ballot(lane < ROWS && mine >= 0);
        const char* weights[COLUMNS];
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            const int64_t column = first + c < p.d ? first + c : p.d - 1;
            weights[c] = element(down.weights, type, column * down.stride);
        }
#pragma unroll AHEAD
        for (int i = step * STEP + lane * VEC; i < down.width; i += WAVES * STEP) {
            float w[COLUMNS][VEC];
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) Data::weights(weights[c], type, i, down.width - i, w[c]);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                if (ROWS > 1 && !(active >> r & 1)) continue;
                float x[VEC];
                // Hidden from the optimiser: keeping the addresses of all rows across the loop would spill.
                const int64_t offset = ROWS == 1 ? mine : act_offset(p, distinct, expert, opaque(r));
                Data::rows(element(p.act, type, offset), type, i, down.width - i, x);
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
                    for (int j = 0; j < VEC; j++) sums[r * COLUMNS + c] = fma(w[c][j], x[j], sums[r * COLUMNS + c]);
                }
            }
        }
        // The rotation continues across experts: the wave after the one with the last step takes the next expert's
        // first.
        if (step < steps) step += (steps - step + WAVES - 1) / WAVES * WAVES;
        step -= steps;
    }
    const float sum = wave_sums(sums);
    if (lane % (WAVE / COUNT) == 0) partial[wave_index() * COUNT + lane / (WAVE / COUNT)] = sum;
    sync_block();
    const int thread = thread_index(), r = thread / COLUMNS, column = first + thread % COLUMNS;
    if (thread >= COUNT || r >= p.rows || column >= p.d) return;
    float total = 0.f;
    for (int w = 0; w < WAVES; w++) total += partial[w * COUNT + thread];
    Data::store(p.out.data, type, r * p.out.stride + column, or_nan(p, distinct, r, total));
}

}  // namespace openmythos::gpu
