#pragma once

#include "streamed.h"

// The experts by multiply and add: one row of any type, and up to 16 of float32 or of sizes without vectors. A wave
// reads its weights once, 256 columns at a time, and multiplies them with every row that wants them.

namespace openmythos::gpu {

// Eight elements at a time, at 16 bytes: weights pass by, activations are read by many blocks.
template <class T>
struct Vectors {
    // Steps whose loads are in flight together.
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

// A wave takes HIDDEN hidden units.
template <class Data, int ROWS, int HIDDEN>
OPENMYTHOS_DEVICE void vectors_up(const MoeParams& p) {
    constexpr int COUNT = 2 * HIDDEN * ROWS, LANES = WAVE / COUNT, AHEAD = ROWS == 1 ? Data::AHEAD_UP : 1;
    __shared__ Takers takers;
    Hidden hidden;
    if (!find_hidden(p, hidden, takers)) return;
    const int first = hidden.first + uniform(wave_index()) * HIDDEN, lane = lane_index();
    if (first >= hidden.width) return;
    const Type type = p.x.type;
    const uint32_t wanted = ROWS == 1 ? 1 : wave_ballot(lane < ROWS && takers.offset[lane % ROWS] >= 0);
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
            if (ROWS > 1 && !(wanted >> r & 1)) continue;
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
    // Gate and up of one hidden unit are LANES lanes apart.
    const float sum = wave_sums(sums), other = from_lane_xor<LANES>(sum);
    const int index = lane / LANES, r = index / 2 % ROWS, unit = first + index / (2 * ROWS);
    if (lane % (2 * LANES) != 0 || unit >= hidden.width || takers.offset[r] < 0) return;
    Data::store(p.act, type, takers.offset[r] + unit, swiglu(sum, other) * takers.factor[r]);
}

// A block takes COLUMNS columns of the result; the experts' hidden units side by side are dealt to its waves.
template <class Data, int ROWS, int COLUMNS>
OPENMYTHOS_DEVICE void vectors_down(const MoeParams& p) {
    constexpr int COUNT = COLUMNS * ROWS, STEP = WAVE * VEC, WAVES = VECTOR_THREADS / WAVE;
    constexpr int AHEAD = ROWS == 1 ? Data::AHEAD_DOWN : 1;
    __shared__ Chosen<ROWS> chosen;
    __shared__ float partial[WAVES * COUNT];
    find_chosen(p, chosen);
    const int first = block_index() * COLUMNS, lane = lane_index();
    const int units = uniform(chosen.count) + p.shared_count;
    const Type type = p.x.type;
    float sums[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) sums[i] = 0.f;
    int step = uniform(wave_index());
    for (int unit = 0; unit < units; unit++) {
        const Down down = down_of(p, chosen, unit);
        const int steps = (down.width + STEP - 1) / STEP;
        const int64_t mine = act_offset(p, chosen, unit, lane % ROWS);
        const uint32_t wanted = ROWS == 1 ? 1 : wave_ballot(lane < ROWS && mine >= 0);
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
                if (ROWS > 1 && !(wanted >> r & 1)) continue;
                float x[VEC];
                // Addresses of all rows, kept over the steps, would not fit the registers.
                const int64_t offset = ROWS == 1 ? mine : act_offset(p, chosen, unit, opaque(r));
                Data::rows(element(p.act, type, offset), type, i, down.width - i, x);
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
                    for (int j = 0; j < VEC; j++) sums[r * COLUMNS + c] = fma(w[c][j], x[j], sums[r * COLUMNS + c]);
                }
            }
        }
        // The next expert's first step is for the wave after the one that had this one's last.
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
    Data::store(p.out.data, type, r * p.out.stride + column, or_nan(p, chosen, r, total));
}

}  // namespace openmythos::gpu
