#pragma once

#include "vec.h"

// Register tiles of C^T = W A^T, W (O, K) with contiguous K. Two forms, by what the vector lanes hold:
//
// packed: lanes are tokens. Activations are packed once into groups of VL tokens; weights are broadcast from their
// rows, so they are never repacked and nothing is reduced. Best from about half a group of tokens.
//
// dot: lanes are steps of K. For a handful of tokens; partial sums are reduced at the end.
//
// Every tile writes float32 C^T[o][token], so both share their epilogues.

namespace openmythos::cpu::OPENMYTHOS_ISA {

// Layout of one step of packed activations. A bfloat16 step is a pair of K elements: interleaved in 32-bit lanes if the
// CPU has a dot-product instruction, else widened to two float rows.
template <class T>
struct Packed {
    static constexpr int elements = 1;
    static constexpr int floats = VL;
};
template <>
struct Packed<bf16> {
    static constexpr int elements = 2;
#ifdef __AVX512BF16__
    static constexpr int floats = VL;
#else
    static constexpr int floats = 2 * VL;
#endif
};

template <class T>
OPENMYTHOS_INLINE int64_t packed_steps(int64_t k) {
    return ceil_div(k, Packed<T>::elements);
}
template <class T>
OPENMYTHOS_INLINE int64_t packed_floats(int64_t k) {
    // Room for an even number of elements, which are written in pairs.
    return packed_steps<T>(round_up(k, 2)) * Packed<T>::floats;
}

#ifdef __AVX512F__
constexpr int PANEL = 8;       // weight rows of a packed tile
constexpr int MAX_GROUPS = 3;  // token groups of a packed tile: 8 x 3 accumulators
#else
constexpr int PANEL = 4;
constexpr int MAX_GROUPS = 2;
#endif

OPENMYTHOS_INLINE int32_t load32(const void* p) {
    int32_t x;
    memcpy(&x, p, 4);
    return x;
}

#ifdef __AVX512BF16__
OPENMYTHOS_INLINE vec dot_pairs(vec acc, ivec a, ivec b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
#endif

#ifdef __AVX512F__
OPENMYTHOS_INLINE vec low_half(ivec pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
OPENMYTHOS_INLINE vec high_half(ivec pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, iset1(int32_t(0xffff0000))));
}
#else
OPENMYTHOS_INLINE vec low_half(ivec pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
OPENMYTHOS_INLINE vec high_half(ivec pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, iset1(int32_t(0xffff0000))));
}
#endif

// acc[r][g] += w[r] * a[g] for one step; `pair` is the 32 bits of one weight row at this step.
template <class T, int G, class Pair>
OPENMYTHOS_INLINE void packed_step(vec (&acc)[PANEL][G], const float* a, int64_t group, const Pair& pair) {
    if constexpr (type_of<T> == Type::float32) {
        vec x[G];
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) x[g] = load(a + g * group);
#pragma GCC unroll 8
        for (int r = 0; r < PANEL; r++) {
            float w;
            int32_t bits = pair(r);
            memcpy(&w, &bits, 4);
            vec weight = set1(w);
#pragma GCC unroll 4
            for (int g = 0; g < G; g++) acc[r][g] = fma(weight, x[g], acc[r][g]);
        }
    } else {
#ifdef __AVX512BF16__
        ivec x[G];
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) x[g] = iload(a + g * group);
#pragma GCC unroll 8
        for (int r = 0; r < PANEL; r++) {
            ivec weight = iset1(pair(r));
#pragma GCC unroll 4
            for (int g = 0; g < G; g++) acc[r][g] = dot_pairs(acc[r][g], x[g], weight);
        }
#else
        vec even[G], odd[G];
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) even[g] = load(a + g * group), odd[g] = load(a + g * group + VL);
#pragma GCC unroll 8
        for (int r = 0; r < PANEL; r++) {
            ivec weight = iset1(pair(r));
            vec low = low_half(weight), high = high_half(weight);
#pragma GCC unroll 4
            for (int g = 0; g < G; g++) acc[r][g] = fma(high, odd[g], fma(low, even[g], acc[r][g]));
        }
#endif
    }
}

// Steps that one accumulator sums before it is added to C: longer float32 sums lose accuracy.
template <class T>
constexpr int64_t SUM_STEPS = type_of<T> == Type::float32 ? 256 : 1024;

// C^T (PANEL, G * VL) (+)= W (PANEL rows at w[r], K) A^T (G groups, K). Prefetches the rows `next` of a later panel.
template <class T, int G>
static void packed_tile(const float* a, int64_t group, const T* const* w, int64_t k, float* c, int64_t ldc, bool add,
                        const T* const* next, int next_count) {
    constexpr int E = Packed<T>::elements, LINE = 16;  // steps in a cache line of weights
    const T *w0 = w[0], *w1 = w[1], *w2 = w[2], *w3 = w[3];
    const T *w4 = w[4 % PANEL], *w5 = w[5 % PANEL], *w6 = w[6 % PANEL], *w7 = w[7 % PANEL];
    int64_t steps = k / E, step = 0;
    do {
        vec acc[PANEL][G];
#pragma GCC unroll 8
        for (int r = 0; r < PANEL; r++) {
#pragma GCC unroll 4
            for (int g = 0; g < G; g++) acc[r][g] = zero();
        }
        int64_t sum_end = min_of(steps, step + SUM_STEPS<T>);
        while (step < sum_end) {
            for (int i = 0; i < next_count; i++) _mm_prefetch((const char*)(next[i] + step * E), _MM_HINT_T1);
            int64_t end = min_of(sum_end, step + LINE);
            for (; step < end; step++, a += Packed<T>::floats) {
                int64_t at = step * E;
                packed_step<T, G>(acc, a, group, [&](int r) __attribute__((always_inline)) {
                    return load32((r == 0   ? w0
                                   : r == 1 ? w1
                                   : r == 2 ? w2
                                   : r == 3 ? w3
                                   : r == 4 ? w4
                                   : r == 5 ? w5
                                   : r == 6 ? w6
                                            : w7) +
                                  at);
                });
            }
        }
        if (E == 2 && k % 2 && step == steps)
            packed_step<T, G>(acc, a, group, [&](int r) __attribute__((always_inline)) {
                uint16_t bits;
                memcpy(&bits, w[r] + k - 1, 2);
                return int32_t(bits);
            });
#pragma GCC unroll 8
        for (int r = 0; r < PANEL; r++) {
#pragma GCC unroll 4
            for (int g = 0; g < G; g++) {
                float* to = c + r * ldc + g * VL;
                store(to, add ? load(to) + acc[r][g] : acc[r][g]);
            }
        }
        add = true;
    } while (step < steps);
}

// The dot form takes LANES elements of K per step.
template <class T>
constexpr int LANES = VL * (type_of<T> == Type::float32 ? 1 : 2);

constexpr int DOT_M = 4;  // tokens of a dot tile: four sums make one __m128
#if defined(__AVX512BF16__)
template <class T>
constexpr int DOT_N = 6;
#elif defined(__AVX512F__)
template <class T>
constexpr int DOT_N = type_of<T> == Type::float32 ? 6 : 4;
#else
template <class T>
constexpr int DOT_N = 2;
#endif

template <class T>
struct Chunk;  // LANES elements of K, in the operand format of its multiply-add
template <>
struct Chunk<float> {
    vec x;
    OPENMYTHOS_INLINE Chunk at(const float* p) { return {load(p)}; }
    OPENMYTHOS_INLINE Chunk at(const float* p, int64_t n) { return {load(p, n)}; }
    OPENMYTHOS_INLINE_MEMBER vec dot(const Chunk& y, vec acc) const { return fma(x, y.x, acc); }
};

OPENMYTHOS_INLINE ivec load_pairs(const bf16* p, int64_t n) {
#ifdef __AVX512F__
    return _mm512_maskz_loadu_epi16(_bzhi_u32(~0u, uint32_t(n)), p);
#else
    alignas(32) bf16 padded[2 * VL] = {};
    memcpy(padded, p, size_t(n) * 2);
    return iload(padded);
#endif
}

template <>
struct Chunk<bf16> {
#ifdef __AVX512BF16__
    ivec x;
    OPENMYTHOS_INLINE Chunk of(ivec pairs) { return {pairs}; }
    OPENMYTHOS_INLINE_MEMBER vec dot(const Chunk& y, vec acc) const { return dot_pairs(acc, x, y.x); }
#else
    vec low, high;
    OPENMYTHOS_INLINE Chunk of(ivec pairs) { return {low_half(pairs), high_half(pairs)}; }
    OPENMYTHOS_INLINE_MEMBER vec dot(const Chunk& y, vec acc) const { return fma(high, y.high, fma(low, y.low, acc)); }
#endif
    OPENMYTHOS_INLINE Chunk at(const bf16* p) { return of(iload(p)); }
    OPENMYTHOS_INLINE Chunk at(const bf16* p, int64_t n) { return of(load_pairs(p, n)); }
};

// C^T[n][0..4) = W[n] . A[m] over K; tokens past M are zero. Prefetches NEXT rows of a later panel.
template <class T, int M, int NEXT>
static void dot_tile(const T* const* a, const T* const* w, int64_t k, float* c, int64_t ldc, const T* const* next) {
    constexpr int N = DOT_N<T>;
    vec acc[N][DOT_M];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
#pragma GCC unroll 4
        for (int m = 0; m < DOT_M; m++) acc[n][m] = zero();
    }
    auto step = [&](auto load_chunk) __attribute__((always_inline)) {
        Chunk<T> b[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) b[n] = load_chunk(w[n]);
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) {
            Chunk<T> x = load_chunk(a[m]);
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) acc[n][m] = x.dot(b[n], acc[n][m]);
        }
    };
    int64_t i = 0;
    for (; i + LANES<T> <= k; i += LANES<T>) {
#pragma GCC unroll 8
        for (int n = 0; n < NEXT; n++) _mm_prefetch((const char*)(next[n] + i), _MM_HINT_T1);
        step([&](const T* p) __attribute__((always_inline)) { return Chunk<T>::at(p + i); });
    }
    if (i < k) step([&](const T* p) __attribute__((always_inline)) { return Chunk<T>::at(p + i, k - i); });
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) _mm_storeu_ps(c + n * ldc, sum4(acc[n][0], acc[n][1], acc[n][2], acc[n][3]));
}

// One token: the dot product with one weight row, read in memory order. Prefetches `ahead` elements ahead, past the end
// of the row from the beginning of `next`.
template <class T>
static float dot_row(const T* a, const T* w, int64_t k, int64_t ahead, const T* next) {
    constexpr int U = 4, STEP = U * LANES<T>;
    vec acc[U];
#pragma GCC unroll 4
    for (int u = 0; u < U; u++) acc[u] = zero();
    int64_t i = 0;
    auto run = [&](int64_t end, const T* from) __attribute__((always_inline)) {
        for (; i + STEP <= end; i += STEP) {
#pragma GCC unroll 4
            for (int u = 0; u < U; u++) {
                int64_t at = i + u * LANES<T>;
                _mm_prefetch((const char*)(from + at), _MM_HINT_T1);
                acc[u] = Chunk<T>::at(a + at).dot(Chunk<T>::at(w + at), acc[u]);
            }
        }
    };
    run(k - ahead, w + ahead);
    run(k, next + ahead - k);
    for (; i + LANES<T> <= k; i += LANES<T>) acc[0] = Chunk<T>::at(a + i).dot(Chunk<T>::at(w + i), acc[0]);
    if (i < k) acc[1] = Chunk<T>::at(a + i, k - i).dot(Chunk<T>::at(w + i, k - i), acc[1]);
    return sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
