#pragma once

#include "../core/gpu/fragments.h"
#include "streamed.h"

// The experts of 2 to 16 rows of bfloat16 or float16 by matrix instructions: 16 rows of weights times up to 16 rows of
// activations, both read from memory as the instruction wants them, without shared memory between. The waves of a block
// deal out the depth.

namespace openmythos::gpu {

constexpr int UP_WAVES = 4, DOWN_WAVES = 16;
constexpr int UP_THREADS = UP_WAVES * WAVE, DOWN_THREADS = DOWN_WAVES * WAVE;
constexpr int STEPS_AHEAD = 4;  // steps whose loads are in flight together

// STEPS steps of VECTOR_K columns from `begin` on. This lane's vectors of MATRICES tiles of weights
// and of the rows, which ZEROS allows to be null and zero; beyond `width` there is nothing.
template <class T, bool ZEROS, int MATRICES, int STEPS, bool WHOLE>
OPENMYTHOS_DEVICE void multiply_steps(float (&acc)[MATRICES][8], const char* const (&weights)[MATRICES][2],
                                      const char* const (&rows)[2], int begin, int width) {
    Words w[STEPS][MATRICES][2], x[STEPS][2];
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
#pragma unroll
        for (int v = 0; v < 2; v++) {
            const int i = begin + s * VECTOR_K + vector_column(v);
            const bool inside = WHOLE || i < width;
#pragma unroll
            for (int m = 0; m < MATRICES; m++)
                w[s][m][v] = inside ? load_once(weights[m][v] + 2 * int64_t(i)) : Words{};
            x[s][v] = (!ZEROS || rows[v]) && inside ? load_cached(rows[v] + 2 * int64_t(i)) : Words{};
        }
    }
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
#pragma unroll
        for (int m = 0; m < MATRICES; m++) mma_vectors<T>(acc[m], w[s][m], x[s]);
    }
}

// Every WAVES-th span of `width` from `span` on; returns the span after these, from the end of the width on. The steps
// of a span are neighbours, so that a wave reads whole lines of the caches.
template <class T, bool ZEROS, int WAVES, int MATRICES>
OPENMYTHOS_DEVICE int multiply_dealt(float (&acc)[MATRICES][8], const char* const (&weights)[MATRICES][2],
                                     const char* const (&rows)[2], int span, int width) {
    constexpr int SPAN = STEPS_AHEAD * VECTOR_K;
    const int spans = (width + SPAN - 1) / SPAN;
    for (; span < spans; span += WAVES) {
        const int begin = span * SPAN;
        if (begin + SPAN <= width) {
            multiply_steps<T, ZEROS, MATRICES, STEPS_AHEAD, true>(acc, weights, rows, begin, width);
        } else {
            for (int i = begin; i < width; i += VECTOR_K)
                multiply_steps<T, ZEROS, MATRICES, 1, false>(acc, weights, rows, i, width);
        }
    }
    return span - spans;
}

OPENMYTHOS_DEVICE void store_tile(float* tile, const float (&acc)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) tile[vector_n(i) * TILE + vector_m(i)] = acc[i];
}

// A block takes 16 hidden units.
template <class T>
OPENMYTHOS_DEVICE void tiles_up(const MoeParams& p) {
    __shared__ Takers takers;
    __shared__ float partial[UP_WAVES][2][TILE * TILE];
    Hidden hidden;
    if (!find_hidden(p, hidden, takers)) return;
    const char *weights[2][2], *rows[2];
#pragma unroll
    for (int v = 0; v < 2; v++) {
        const int row = vector_row(v);
        const int64_t unit = hidden.first + row < hidden.width ? hidden.first + row : hidden.width - 1;
        weights[0][v] = static_cast<const char*>(hidden.gate) + 2 * unit * hidden.gate_stride;
        weights[1][v] = static_cast<const char*>(hidden.up) + 2 * unit * hidden.up_stride;
        // Rows past the end repeat the last one, and nobody looks at what becomes of them.
        rows[v] = static_cast<const char*>(p.x.data) + 2 * (row < p.rows ? row : p.rows - 1) * p.x.stride;
    }
    float acc[2][8] = {};
    const int wave = uniform(wave_index());
    multiply_dealt<T, false, UP_WAVES>(acc, weights, rows, wave, p.d);
    store_tile(partial[wave][0], acc[0]);
    store_tile(partial[wave][1], acc[1]);
    sync_block();
    for (int i = thread_index(); i < TILE * TILE; i += UP_THREADS) {
        const int row = i / TILE, unit = hidden.first + i % TILE;
        if (takers.offset[row] < 0 || unit >= hidden.width) continue;
        float gate = 0.f, up = 0.f;
#pragma unroll
        for (int w = 0; w < UP_WAVES; w++) gate += partial[w][0][i], up += partial[w][1][i];
        static_cast<T*>(p.act)[takers.offset[row] + unit] = from_float<T>(swiglu(gate, up) * takers.factor[row]);
    }
}

// A block takes 16 columns of the result; the experts' hidden units side by side are the depth.
template <class T>
OPENMYTHOS_DEVICE void tiles_down(const MoeParams& p) {
    __shared__ Chosen<MOE_MAX_ROWS> chosen;
    __shared__ float partial[DOWN_WAVES][TILE * TILE];
    find_chosen(p, chosen);
    const int first = block_index() * TILE, wave = uniform(wave_index());
    const int units = uniform(chosen.count) + p.shared_count;
    float acc[1][8] = {};
    int span = wave;
    for (int unit = 0; unit < units; unit++) {
        const Down down = down_of(p, chosen, unit);
        const char *weights[1][2], *rows[2];
#pragma unroll
        for (int v = 0; v < 2; v++) {
            const int row = vector_row(v);
            const int64_t column = first + row < p.d ? first + row : p.d - 1;
            const int64_t offset = act_offset(p, chosen, unit, row);
            weights[0][v] = static_cast<const char*>(down.weights) + 2 * column * down.stride;
            rows[v] = offset < 0 ? nullptr : static_cast<const char*>(p.act) + 2 * offset;
        }
        span = multiply_dealt<T, true, DOWN_WAVES>(acc, weights, rows, span, down.width);
    }
    store_tile(partial[wave], acc[0]);
    sync_block();
    const int thread = thread_index();
    if (thread >= TILE * TILE) return;
    const int row = thread / TILE, column = first + thread % TILE;
    if (row >= p.rows || column >= p.d) return;
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < DOWN_WAVES; w++) sum += partial[w][thread];
    static_cast<T*>(p.out.data)[row * p.out.stride + column] = from_float<T>(or_nan(p, chosen, row, sum));
}

}  // namespace openmythos::gpu
