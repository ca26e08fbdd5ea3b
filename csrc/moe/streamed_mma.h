#pragma once

#include "../core/gpu/fragments.h"
#include "streamed.h"

// The experts of 2 to 16 rows of bfloat16 or float16 by matrix instructions: 16 rows of weights times up to 16 rows of
// activations. Both go from global memory to registers in the layout of the instruction, without shared memory. The
// waves of a block split K.

namespace openmythos::gpu {

constexpr int UP_WAVES = 4, DOWN_WAVES = 16;
constexpr int UP_THREADS = UP_WAVES * WAVE, DOWN_THREADS = DOWN_WAVES * WAVE;
constexpr int STEPS_AHEAD = 4;  // steps of VECTOR_K columns whose loads are in flight together

// Multiplies STEPS steps starting at column `begin`. `weights` and `rows` are the rows whose vectors this lane loads;
// with ZEROS a null row is zero. With FULL the steps must not pass `width`.
template <class T, bool ZEROS, int MATRICES, int STEPS, bool FULL>
OPENMYTHOS_DEVICE void multiply_steps(float (&acc)[MATRICES][8], const char* const (&weights)[MATRICES][2],
                                      const char* const (&rows)[2], int begin, int width) {
    Words w[STEPS][MATRICES][2], x[STEPS][2];
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
#pragma unroll
        for (int v = 0; v < 2; v++) {
            const int i = begin + s * VECTOR_K + vector_column(v);
            const bool inside = FULL || i < width;
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

// Multiplies every WAVES-th span starting at `span`, and returns the index of the next one relative to the end of
// `width`. The steps of a span are adjacent, so that a wave reads whole cache lines.
template <class T, bool ZEROS, int WAVES, int MATRICES>
OPENMYTHOS_DEVICE int multiply_spans(float (&acc)[MATRICES][8], const char* const (&weights)[MATRICES][2],
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

// A block computes 16 hidden units.
template <class T>
OPENMYTHOS_DEVICE void streamed_up_mma(const MoeExpertsArgs& p) {
    __shared__ ExpertTokens tokens;
    __shared__ float partial[UP_WAVES][2][TILE * TILE];
    HiddenUnits hidden;
    if (!find_hidden_units(p, hidden, tokens)) return;
    const char *weights[2][2], *rows[2];
#pragma unroll
    for (int v = 0; v < 2; v++) {
        const int row = vector_row(v);
        const int64_t unit = hidden.first + row < hidden.width ? hidden.first + row : hidden.width - 1;
        weights[0][v] = static_cast<const char*>(hidden.gate) + 2 * unit * hidden.gate_stride;
        weights[1][v] = static_cast<const char*>(hidden.up) + 2 * unit * hidden.up_stride;
        // Rows past the end repeat the last one; their results are not stored.
        rows[v] = static_cast<const char*>(p.x.data) + 2 * (row < p.rows ? row : p.rows - 1) * p.x.stride;
    }
    float acc[2][8] = {};
    const int wave = uniform(wave_index());
    multiply_spans<T, false, UP_WAVES>(acc, weights, rows, wave, p.d);
    store_tile(partial[wave][0], acc[0]);
    store_tile(partial[wave][1], acc[1]);
    sync_block();
    for (int i = thread_index(); i < TILE * TILE; i += UP_THREADS) {
        const int row = i / TILE, unit = hidden.first + i % TILE;
        if (tokens.offset[row] < 0 || unit >= hidden.width) continue;
        float gate = 0.f, up = 0.f;
#pragma unroll
        for (int w = 0; w < UP_WAVES; w++) gate += partial[w][0][i], up += partial[w][1][i];
        static_cast<T*>(p.act)[tokens.offset[row] + unit] = from_float<T>(swiglu(gate, up) * tokens.factor[row]);
    }
}

// A block computes 16 columns of the result; K runs over the hidden units of one expert after the other.
template <class T>
OPENMYTHOS_DEVICE void streamed_down_mma(const MoeExpertsArgs& p) {
    __shared__ DistinctExperts<MOE_MAX_ROWS> distinct;
    __shared__ float partial[DOWN_WAVES][TILE * TILE];
    find_distinct_experts(p, distinct);
    const int first = block_index() * TILE, wave = uniform(wave_index());
    const int count = uniform(distinct.count) + p.shared_count;
    float acc[1][8] = {};
    int span = wave;
    for (int expert = 0; expert < count; expert++) {
        const DownMatrix down = down_matrix(p, distinct, expert);
        const char *weights[1][2], *rows[2];
#pragma unroll
        for (int v = 0; v < 2; v++) {
            const int row = vector_row(v);
            const int64_t column = first + row < p.d ? first + row : p.d - 1;
            const int64_t offset = act_offset(p, distinct, expert, row);
            weights[0][v] = static_cast<const char*>(down.weights) + 2 * column * down.stride;
            rows[v] = offset < 0 ? nullptr : static_cast<const char*>(p.act) + 2 * offset;
        }
        span = multiply_spans<T, true, DOWN_WAVES>(acc, weights, rows, span, down.width);
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
    static_cast<T*>(p.out.data)[row * p.out.stride + column] = from_float<T>(or_nan(p, distinct, row, sum));
}

}  // namespace openmythos::gpu
