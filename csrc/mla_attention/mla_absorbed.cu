#include "split_kv_fma.h"
#include "split_kv_mma.h"

// Absorbed multi-head latent attention for few new tokens: queries are folded through w_uk, and keys and values are the
// latent itself, which all heads share. Three launches: fold the queries; attend each block of rows (token, head) to
// one split of the keys; combine the splits and project through w_uv.

namespace openmythos::gpu {

constexpr int MLA_THREADS = 256, MLA_WAVES = MLA_THREADS / WAVE;
constexpr int MAX_HEAD = 256, MAX_LATENT = 1024, MAX_SPLITS = 256;
constexpr int TOKENS = 4;  // per block; a weight that it loads serves all of them

struct Token {
    int batch, t;
};
// Tokens past the end repeat the last one; their results are not stored.
OPENMYTHOS_DEVICE Token token_of(const MlaArgs& p, int index) {
    int last = p.b * p.t - 1, i = index < last ? index : last;
    return {i / p.t, i % p.t};
}

// folded[row] = q_nope[row] . w_uk of its head, for 64 columns of the latent. Eight lanes cover the columns, and each
// group of eight lanes has its own rows of w_uk.
template <class T>
OPENMYTHOS_DEVICE void fold_queries(const MlaArgs& p) {
    constexpr int COLUMNS = 64, LANES = COLUMNS / VEC, GROUPS = MLA_THREADS / LANES;
    constexpr int AHEAD = sizeof(T) == 4 ? 1 : 4;  // rows of w_uk in flight
    alignas(16) __shared__ float queries[MAX_HEAD][TOKENS];
    __shared__ float sums[MLA_WAVES][TOKENS][COLUMNS];
    const int thread = thread_index(), head = block_index_y(), first = block_index() * TOKENS;
    const int column = block_index_z() * COLUMNS;

    for (int i = thread; i < p.dn * TOKENS; i += MLA_THREADS) {
        Token token = token_of(p, first + i % TOKENS);
        const T* from = static_cast<const T*>(p.q_nope) + token.batch * p.q_nope_b + token.t * p.q_nope_t +
                        head * p.q_nope_h + i / TOKENS;
        queries[i / TOKENS][i % TOKENS] = to_float(*from);
    }
    sync_block();

    float out[TOKENS][VEC];
#pragma unroll
    for (int r = 0; r < TOKENS; r++) {
#pragma unroll
        for (int j = 0; j < VEC; j++) out[r][j] = 0.f;
    }
    const T* weights = static_cast<const T*>(p.w_uk) + head * p.w_uk_h + column + thread % LANES * VEC;
#pragma unroll AHEAD
    for (int n = thread / LANES; n < p.dn; n += GROUPS) {
        float w[VEC];
        load_vector(weights + n * p.w_uk_n, w);
#pragma unroll
        for (int r = 0; r < TOKENS; r++) {
#pragma unroll
            for (int j = 0; j < VEC; j++) out[r][j] = fma(queries[n][r], w[j], out[r][j]);
        }
    }
#pragma unroll
    for (int r = 0; r < TOKENS; r++) {
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            float x = out[r][j];
            x += from_lane_xor<8>(x);
            x += from_lane_xor<16>(x);
            if (lane_index() < LANES) sums[wave_index()][r][lane_index() * VEC + j] = x;
        }
    }
    sync_block();
    static_assert(TOKENS * COLUMNS == MLA_THREADS);
    const int r = thread / COLUMNS, c = thread % COLUMNS;
    float x = 0.f;
#pragma unroll
    for (int w = 0; w < MLA_WAVES; w++) x += sums[w][r][c];
    if (first + r < p.b * p.t)
        static_cast<T*>(p.folded)[(int64_t(first + r) * p.h + head) * p.dc + column + c] = from_float<T>(x);
}

// out = w_uv of the head times the splits' outputs, each weighted by its part of the softmax, for p.columns columns.
template <class T>
OPENMYTHOS_DEVICE void combine_splits(const MlaArgs& p) {
    constexpr int ROWS_PER_WAVE = 2;  // of w_uv
    alignas(16) __shared__ float latent[TOKENS][MAX_LATENT];
    __shared__ float weights[TOKENS][MAX_SPLITS];
    const int lane = lane_index(), wave = wave_index(), head = block_index_y(), first = block_index() * TOKENS;
    const int64_t rows = int64_t(p.t) * p.h;

    if (wave < TOKENS) {
        Token token = token_of(p, first + wave);
        const float* lse = p.part_lse + token.batch * p.splits * rows + int64_t(token.t) * p.h + head;
        float x[MAX_SPLITS / WAVE], max = MINUS_INFINITY, sum = 0.f;
#pragma unroll
        for (int i = 0; i < MAX_SPLITS / WAVE; i++) {
            int split = i * WAVE + lane;
            x[i] = split < p.splits ? lse[split * rows] : MINUS_INFINITY;
            max = __builtin_fmaxf(max, x[i]);
        }
        max = wave_max(max);
        const float safe = max == MINUS_INFINITY ? 0.f : max;
#pragma unroll
        for (int i = 0; i < MAX_SPLITS / WAVE; i++) {
            x[i] = fast_exp2(x[i] - safe);
            sum += x[i];
        }
        sum = wave_sum(sum);
        const float scale = sum == 0.f ? 0.f : 1.f / sum;
#pragma unroll
        for (int i = 0; i < MAX_SPLITS / WAVE; i++) weights[wave][i * WAVE + lane] = x[i] * scale;
        if (p.lse && lane == 0 && block_index_z() == 0 && first + wave < p.b * p.t) {
            float total = sum == 0.f ? MINUS_INFINITY : (max + fast_log2(sum)) * 0.693147181f;
            p.lse[(int64_t(token.batch) * p.h + head) * p.t + token.t] = total;
        }
    }
    sync_block();

    // If the block has a single token, all its threads share that token's splits.
    const bool one = first + 1 == p.b * p.t;
    for (int i = thread_index(); i < TOKENS * p.dc / 4; i += MLA_THREADS) {
        const int r = i / (p.dc / 4), c = i % (p.dc / 4) * 4;
        Token token = token_of(p, first + r);
        const float* part = p.part + (token.batch * p.splits * rows + int64_t(token.t) * p.h + head) * p.dc + c;
        float x[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll 4
        for (int split = one ? r : 0; split < p.splits; split += one ? TOKENS : 1) {
            float weight = weights[r][split];
            // A split without keys was never written.
            Words raw = {};
            if (weight != 0.f) raw = load_cached(part + split * rows * p.dc);
#pragma unroll
            for (int j = 0; j < 4; j++) x[j] = fma(weight, __builtin_bit_cast(float, raw.w[j]), x[j]);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) latent[r][c + j] = x[j];
    }
    sync_block();
    if (one) {
        for (int c = thread_index(); c < p.dc; c += MLA_THREADS) {
#pragma unroll
            for (int r = 1; r < TOKENS; r++) latent[0][c] += latent[r][c];
        }
        sync_block();
    }

    int end = (block_index_z() + 1) * p.columns;
    if (end > p.dv) end = p.dv;
    for (int column = block_index_z() * p.columns; column < end; column += ROWS_PER_WAVE * MLA_WAVES) {
        float out[ROWS_PER_WAVE][TOKENS];
#pragma unroll
        for (int i = 0; i < ROWS_PER_WAVE; i++) {
#pragma unroll
            for (int r = 0; r < TOKENS; r++) out[i][r] = 0.f;
        }
        int v[ROWS_PER_WAVE];
        const T* rows_of_w[ROWS_PER_WAVE];
#pragma unroll
        for (int i = 0; i < ROWS_PER_WAVE; i++) {
            v[i] = column + i * MLA_WAVES + wave;
            rows_of_w[i] = static_cast<const T*>(p.w_uv) + head * p.w_uv_h + (v[i] < p.dv ? v[i] : p.dv - 1) * p.w_uv_v;
        }
        for (int c = lane * VEC; c < p.dc; c += WAVE * VEC) {
            float w[ROWS_PER_WAVE][VEC];
#pragma unroll
            for (int i = 0; i < ROWS_PER_WAVE; i++) load_vector(rows_of_w[i] + c, w[i]);
#pragma unroll
            for (int r = 0; r < TOKENS; r++) {
#pragma unroll
                for (int j = 0; j < VEC; j++) {
#pragma unroll
                    for (int i = 0; i < ROWS_PER_WAVE; i++) out[i][r] = fma(w[i][j], latent[r][c + j], out[i][r]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < ROWS_PER_WAVE; i++) {
            float sum = wave_sums(out[i]);
            const int r = lane / (WAVE / TOKENS);
            if (lane % (WAVE / TOKENS) != 0 || v[i] >= p.dv || first + r >= p.b * p.t) continue;
            Token token = token_of(p, first + r);
            static_cast<T*>(p.out)[token.batch * p.out_b + token.t * p.out_t + head * p.out_h + v[i]] =
                from_float<T>(sum);
        }
    }
}

// `blocks`: resident blocks per multiprocessor, which limits the registers.
#define OPENMYTHOS_MLA_SPLITS(name, T, dc, dr, blocks, ...) \
    OPENMYTHOS_KERNEL_RESIDENT(SPLIT_THREADS, blocks)       \
    openmythos_mla_absorbed_##name##_##dc##_##dr(MlaArgs p) { split_kv<T, __VA_ARGS__>(p); }
#define OPENMYTHOS_MLA_MMA(name, T, dc, dr, blocks)                       \
    OPENMYTHOS_MLA_SPLITS(name, T, dc, dr, blocks, MmaTile<T, dc, dr, 1>) \
    OPENMYTHOS_KERNEL_RESIDENT(SPLIT_THREADS, dc > 256 ? 1 : 2)           \
    openmythos_mla_absorbed_##name##_##dc##_##dr##_rows32(MlaArgs p) { split_kv<T, MmaTile<T, dc, dr, 2>>(p); }
#define OPENMYTHOS_MLA(name, T)                                                                             \
    OPENMYTHOS_KERNEL(MLA_THREADS) openmythos_mla_absorbed_##name##_fold(MlaArgs p) { fold_queries<T>(p); } \
    OPENMYTHOS_KERNEL(MLA_THREADS) openmythos_mla_absorbed_##name##_combine(MlaArgs p) { combine_splits<T>(p); }
#define OPENMYTHOS_MLA_16_BITS(name, T)     \
    OPENMYTHOS_MLA(name, T)                 \
    OPENMYTHOS_MLA_MMA(name, T, 256, 32, 2) \
    OPENMYTHOS_MLA_MMA(name, T, 384, 32, 2) \
    OPENMYTHOS_MLA_MMA(name, T, 512, 64, 2) \
    OPENMYTHOS_MLA_SPLITS(name, T, 1024, 64, 1, MmaTile<T, 1024, 64, 1>)

OPENMYTHOS_MLA(f32, float)
OPENMYTHOS_MLA_SPLITS(f32, float, 256, 32, 1, FmaTile<float, 256, 32>)
OPENMYTHOS_MLA_SPLITS(f32, float, 384, 32, 1, FmaTile<float, 384, 32>)
OPENMYTHOS_MLA_SPLITS(f32, float, 512, 64, 1, FmaTile<float, 512, 64>)
OPENMYTHOS_MLA_SPLITS(f32, float, 1024, 64, 1, FmaTile<float, 1024, 64>)
OPENMYTHOS_MLA_16_BITS(bf16, bf16)
OPENMYTHOS_MLA_16_BITS(f16, f16)

}  // namespace openmythos::gpu
