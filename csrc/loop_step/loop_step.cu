#include "../core/gpu/reduce.h"
#include "../core/gpu/rows.h"
#include "args.h"

// One pass over rows of D between two runs of the recurrent block. A thread block has ROWS rows; each thread has the
// same VECTORS vectors of eight columns in every row, so each weight that it loads serves ROWS rows. Rows stay in
// registers from the first read to the last write. ROWS * VECTORS is always 4, which takes 64 registers for the new h
// and the next input.

namespace openmythos::gpu {

constexpr int MAX_RANK = 256;
constexpr int RANK_TILE = 32;  // ranks per barrier
constexpr int STEP_THREADS = 512;

// sin(x), or with one quarter turn cos(x), for 0 <= x up to about 1e5. The error is below 2^-23.
OPENMYTHOS_DEVICE float sine(float x, int quarter_turns) {
    float turns = __builtin_rintf(x * 0.636619772f);
    // pi/2 in three parts, the first two short enough that their products are exact.
    x = fma(turns, -1.5703125f, x);
    x = fma(turns, -4.837512969970703125e-4f, x);
    x = fma(turns, -7.54978995489188216e-8f, x);
    int quadrant = int(turns) + quarter_turns;
    float square = x * x;
    float s = fma(fma(fma(2.718311493989822e-6f, square, -1.9839334836096632e-4f), square, 8.333329385889463e-3f),
                  square, -1.6666666641626524e-1f);
    s = fma(s * square, x, x);
    float c = fma(fma(fma(2.44331571e-5f, square, -1.38873162e-3f), square, 4.16666456e-2f), square, -0.5f);
    c = fma(c, square, 1.f);
    float y = quadrant & 1 ? c : s;
    return quadrant & 2 ? -y : y;
}

// 2^(hi + lo) for a nonpositive exponent, to one unit in the last place.
OPENMYTHOS_DEVICE float exact_exp2(float hi, float lo) {
    float whole = __builtin_rintf(hi), x = (hi - whole) + lo;
    float y = 1.5403530393381609954e-4f;
    y = fma(y, x, 1.3333558146428443423e-3f);
    y = fma(y, x, 9.6181291076284771619e-3f);
    y = fma(y, x, 5.5504108664821579953e-2f);
    y = fma(y, x, 2.4022650695910071233e-1f);
    y = fma(y, x, 6.9314718055994530942e-1f);
    y = fma(y, x, 1.f);
    return y * __builtin_bit_cast(float, (127 + int(whole)) << 23);
}

OPENMYTHOS_DEVICE float exact_exp(float x) {
    x = __builtin_fminf(__builtin_fmaxf(x, -86.f), 87.f);
    float hi = x * 1.44269504f;
    return exact_exp2(hi, fma(x, 1.44269504f, -hi) + x * 1.925963033e-8f);
}

// Column i of the embedding of loop t: [sin | cos] of t theta^(-2i / loop_dim).
OPENMYTHOS_DEVICE float loop_embedding(const LoopStepArgs& p, int t, int column) {
    int half = (p.loop_dim + 1) / 2, is_cos = column >= half;
    float i = float(is_cos ? column - half : column);
    float hi = i * p.frequency_hi, lo = fma(i, p.frequency_hi, -hi) + i * p.frequency_lo;
    return sine(float(t) * exact_exp2(hi, lo), is_cos);
}

// A negative t counts as 0: the host cannot check t_rows without waiting for the device.
OPENMYTHOS_DEVICE int depth_of(const LoopStepArgs& p, int64_t n) {
    int t = p.t_rows ? p.t_rows[n] : p.t;
    return t > 0 ? t : 0;
}

template <class Row, int ROWS>
OPENMYTHOS_DEVICE void loop_step(const LoopStepArgs& p) {
    constexpr int VECTORS = 4 / ROWS, WAVES = STEP_THREADS / WAVE;
    using Halted = RowOf<Row, float>;
    constexpr bool ANY = __is_same(Row, AnyRow);
    constexpr int GROUP = ANY ? 4 : ROWS == 1 ? 8 : 16 / ROWS;  // ranks that one wave_sums reduces
    constexpr int RANKS_AHEAD = ANY ? 1 : 4;
    __shared__ float partial[WAVES * ROWS * RANK_TILE];
    __shared__ float low[MAX_RANK * ROWS];
    __shared__ float scratch[2 * ROWS * WAVES];
    __shared__ int scale_at[ROWS];        // offset of each row in lora_scale
    extern __shared__ float embedding[];  // [1 or ROWS][loop_dim], if there is a next input

    const int thread = thread_index(), threads = block_threads(), waves = (threads + WAVE - 1) / WAVE;
    const int step = threads * VEC;
    const int64_t first = int64_t(block_index()) * ROWS;
    const bool next = p.x_next.data;
    // Rows past the end repeat the last one and are not stored.
    int64_t row[ROWS];
    int depth[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        row[r] = first + r < p.n ? first + r : p.n - 1;
        depth[r] = depth_of(p, row[r]);
        if (thread == 0) scale_at[r] = (depth[r] < p.scale_rows ? depth[r] : p.scale_rows - 1) * p.rank;
    }

    float y[ROWS][VECTORS][VEC];  // block_out, later the new h
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int c = 0; c < VECTORS; c++) {
            int i = thread * VEC + c * step;
            if (i < p.d) {
                Row::of(p.block_out, row[r]).load(i, p.d - i, y[r][c]);
            } else {
#pragma unroll
                for (int j = 0; j < VEC; j++) y[r][c][j] = 0.f;
            }
        }
    }

    const int tables = p.t_rows ? ROWS : 1;
    if (next) {
        for (int i = thread; i < p.loop_dim; i += threads) {
            embedding[i] = loop_embedding(p, depth[0] + 1, i);
#pragma unroll
            for (int r = 1; r < ROWS; r++)
                if (r < tables) embedding[r * p.loop_dim + i] = loop_embedding(p, depth[r] + 1, i);
        }
    }

    // low[k][r] = (block_out[r] . lora_down[k]) * lora_scale[depth of r][k]
    for (int tile = 0; tile < p.rank; tile += RANK_TILE) {
        const int tile_ranks = p.rank - tile < RANK_TILE ? p.rank - tile : RANK_TILE;
        for (int k = 0; k < tile_ranks; k += GROUP) {
            float sums[GROUP * ROWS];
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
                int rank = tile + (k + g < tile_ranks ? k + g : tile_ranks - 1);
#pragma unroll
                for (int r = 0; r < ROWS; r++) sums[g * ROWS + r] = 0.f;
#pragma unroll
                for (int c = 0; c < VECTORS; c++) {
                    int i = thread * VEC + c * step;
                    if (i >= p.d) continue;
                    float w[VEC];
                    load_floats<Row>(p.lora_down + int64_t(rank) * p.d, i, p.d - i, w);
#pragma unroll
                    for (int r = 0; r < ROWS; r++) {
#pragma unroll
                        for (int j = 0; j < VEC; j++) sums[g * ROWS + r] = fma(y[r][c][j], w[j], sums[g * ROWS + r]);
                    }
                }
            }
            float sum = wave_sums(sums);
            constexpr int LANES = WAVE / (GROUP * ROWS);
            if (lane_index() % LANES == 0)
                partial[wave_index() * ROWS * RANK_TILE + k * ROWS + lane_index() / LANES] = sum;
        }
        sync_block();
        for (int j = thread; j < tile_ranks * ROWS; j += threads) {
            float sum = 0.f;
            for (int w = 0; w < waves; w++) sum += partial[w * ROWS * RANK_TILE + j];
            int k = tile + j / ROWS;
            low[k * ROWS + j % ROWS] = sum * p.lora_scale[scale_at[j % ROWS] + k];
        }
        sync_block();
    }
    if (p.rank == 0) sync_block();  // makes the embedding visible; with rank > 0 the loop above has barriers

    // y is now block_out + low lora_b and later the new h; z is the next input before its norm.
#pragma unroll
    for (int c = 0; c < VECTORS; c++) {
        int i = thread * VEC + c * step;
        if (i >= p.d) continue;
#pragma unroll RANKS_AHEAD
        for (int k = 0; k < p.rank; k++) {
            float w[VEC];
            load_floats<Row>(p.lora_b + int64_t(k) * p.d, i, p.d - i, w);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float factor = low[k * ROWS + r];
#pragma unroll
                for (int j = 0; j < VEC; j++) y[r][c][j] = fma(factor, w[j], y[r][c][j]);
            }
        }
    }

    float z[ROWS][VECTORS][VEC], sums[2 * ROWS];  // halting logit and sum of squares of each row
#pragma unroll
    for (int r = 0; r < 2 * ROWS; r++) sums[r] = 0.f;
#pragma unroll
    for (int c = 0; c < VECTORS; c++) {
        int i = thread * VEC + c * step;
        if (i >= p.d) continue;
        float a[VEC], b[VEC], w[VEC];
        load_floats<Row>(p.a, i, p.d - i, a);
        load_floats<Row>(p.b, i, p.d - i, b);
        load_floats<Row>(p.halt_w, i, p.d - i, w);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float h[VEC];
            Row::of(p.h, row[r]).load(i, p.d - i, h);
            Row::of(p.e, row[r]).load(i, p.d - i, z[r][c]);
#pragma unroll
            for (int j = 0; j < VEC; j++) {
                y[r][c][j] = fma(a[j], h[j], fma(b[j], z[r][c][j], y[r][c][j]));
                sums[r] = fma(y[r][c][j], w[j], sums[r]);
                z[r][c][j] += y[r][c][j];
            }
            if (next) {
                const float* table = embedding + (tables == 1 ? 0 : r) * p.loop_dim;
#pragma unroll
                for (int j = 0; j < VEC; j++) {
                    if (i + j < p.loop_dim) z[r][c][j] += table[i + j];
                    sums[ROWS + r] = fma(z[r][c][j], z[r][c][j], sums[ROWS + r]);
                }
            }
        }
    }
    block_sums(sums, scratch);

#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (first + r >= p.n) break;
        float before = p.cum_p[row[r]], chance = 1.f / (1.f + exact_exp(-(sums[r] + p.halt_b[0])));
        bool running = before < p.threshold;
        float left = 1.f - before > 0.f ? 1.f - before : 0.f;
        float weight = !running ? 0.f : before + chance >= p.threshold ? left : chance;
        float scale = inverse_sqrt(sums[ROWS + r] / float(p.d) + p.eps);
#pragma unroll
        for (int c = 0; c < VECTORS; c++) {
            int i = thread * VEC + c * step;
            if (i >= p.d) continue;
            float out[VEC];
            const int width = p.d - i;
            Halted::of(p.h_out, row[r]).load(i, width, out);
            Row::of(p.h_new, row[r]).store(i, width, y[r][c]);
#pragma unroll
            for (int j = 0; j < VEC; j++) out[j] = fma(weight, y[r][c][j], out[j]);
            Halted::of(p.h_out_new, row[r]).store(i, width, out);
            if (next) {
                float w[VEC];
                load_floats<Row>(p.norm_w, i, width, w);
#pragma unroll
                for (int j = 0; j < VEC; j++) w[j] = z[r][c][j] * scale * w[j];
                Row::of(p.x_next, row[r]).store(i, width, w);
            }
        }
        // cum_p_new may be cum_p: every thread must have read it.
        sync_block();
        if (thread == 0) p.cum_p_new[row[r]] = before + (running ? chance : 0.f);
    }
}

#define OPENMYTHOS_LOOP_STEP(name, Row, rows)                                                  \
    OPENMYTHOS_KERNEL(STEP_THREADS) openmythos_loop_step_##name##_rows##rows(LoopStepArgs p) { \
        loop_step<Row, rows>(p);                                                               \
    }
#define OPENMYTHOS_LOOP_STEPS(name, T)        \
    OPENMYTHOS_LOOP_STEP(name, FastRow<T>, 1) \
    OPENMYTHOS_LOOP_STEP(name, FastRow<T>, 2) \
    OPENMYTHOS_LOOP_STEP(name, FastRow<T>, 4)

OPENMYTHOS_LOOP_STEPS(f32, float)
OPENMYTHOS_LOOP_STEPS(bf16, bf16)
OPENMYTHOS_LOOP_STEPS(f16, f16)
OPENMYTHOS_LOOP_STEP(any, AnyRow, 1)

}  // namespace openmythos::gpu
