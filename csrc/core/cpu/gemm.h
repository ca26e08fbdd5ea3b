#pragma once

#include "gemm_tiles.h"

// Blocks of C^T = W A^T. Tokens are split into packed groups and a remainder of at most DOT_REST in dot form.

namespace openmythos::cpu::OPENMYTHOS_ISA {

constexpr int64_t DOT_REST = VL;
constexpr int64_t PREFETCH_BYTES = 4096;
// 9 groups of 16 tokens by 1024 steps are 576 KB, which leaves room for weights and C in a 1 MB L2.
constexpr int64_t BLOCK_GROUPS = 144 / VL;
constexpr int64_t BLOCK_STEPS = 1024;

struct Split {
    int64_t groups, packed, rest;  // packed: tokens in groups; rest: tokens in dot form
};
OPENMYTHOS_INLINE Split split_tokens(int64_t m) {
    // Even a full group is barely faster than the dot form; one with much padding is slower.
    if (m <= DOT_REST) return {0, 0, m};
    int64_t groups = m / VL, rest = m % VL;
    if (rest > VL * 3 / 4) return {groups + 1, m, 0};
    return {groups, groups * VL, rest};
}
// Floats from one row of the remainder's C^T to the next.
OPENMYTHOS_INLINE int64_t rest_stride(int64_t rest) { return rest <= 1 ? rest : round_up(rest, DOT_M); }

template <class T>
struct Tokens {
    Split split;
    const float* packed;  // groups of packed_floats(k)
    int64_t group;        // floats between groups
    const T* const* rest;
};

// Packs up to VL rows; lanes past `count` are zero.
template <class T>
static void pack_group(const T* const* rows, int64_t count, int64_t k, float* packed) {
    constexpr int E = Packed<T>::elements;
    constexpr bool widen_pairs = Packed<T>::floats == 2 * VL;
    int64_t whole = k / (4 * E) * (4 * E);
    const T* source[VL];
    for (int64_t l = 0; l < VL; l++) source[l] = rows[min_of(l, count - 1)];
    for (int64_t l = 0; l < VL; l += 4) {
        if (l >= count) {
            for (int64_t s = 0; s < packed_floats<T>(k) / VL; s++) _mm_storeu_ps(packed + s * VL + l, _mm_setzero_ps());
            continue;
        }
        __m128i live = _mm_cmplt_epi32(_mm_setr_epi32(0, 1, 2, 3), _mm_set1_epi32(int32_t(min_of(count - l, 4))));
        auto put = [&](int64_t step, __m128 lanes) __attribute__((always_inline)) {
            lanes = _mm_and_ps(lanes, _mm_castsi128_ps(live));
            float* to = packed + step * Packed<T>::floats + l;
            if constexpr (widen_pairs) {
                __m128i pairs = _mm_castps_si128(lanes);
                _mm_storeu_ps(to, _mm_castsi128_ps(_mm_slli_epi32(pairs, 16)));
                _mm_storeu_ps(to + VL, _mm_castsi128_ps(_mm_and_si128(pairs, _mm_set1_epi32(int32_t(0xffff0000)))));
            } else {
                _mm_storeu_ps(to, lanes);
            }
        };
        for (int64_t i = 0; i < whole; i += 4 * E) {
            __m128 x0 = _mm_loadu_ps((const float*)(source[l] + i)),
                   x1 = _mm_loadu_ps((const float*)(source[l + 1] + i));
            __m128 x2 = _mm_loadu_ps((const float*)(source[l + 2] + i)),
                   x3 = _mm_loadu_ps((const float*)(source[l + 3] + i));
            _MM_TRANSPOSE4_PS(x0, x1, x2, x3);
            put(i / E, x0), put(i / E + 1, x1), put(i / E + 2, x2), put(i / E + 3, x3);
        }
        // One step more than needed for an odd float K, which packed_floats has room for.
        for (int64_t i = whole; i < round_up(k, 2); i += E) {
            int32_t lanes[4] = {};
            for (int64_t j = 0; j < 4 && i < k; j++)
                memcpy(&lanes[j], source[l + j] + i, size_t(min_of(E, k - i)) * sizeof(T));
            put(i / E, _mm_loadu_ps((const float*)lanes));
        }
    }
}

// Writes two consecutive K elements, i and i + 1, of one packed group. `i` is even.
template <class T>
OPENMYTHOS_INLINE void pack_two(float* packed, int64_t i, vec even, vec odd) {
    if constexpr (type_of<T> == Type::float32) {
        store(packed + i * VL, even);
        store(packed + i * VL + VL, odd);
    } else {
#ifdef __AVX512BF16__
        ivec low = _mm512_cvtepu16_epi32(narrow(even)), high = _mm512_cvtepu16_epi32(narrow(odd));
        _mm512_storeu_si512(packed + i / 2 * VL, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
#else
        store(packed + i * VL, round_to_bf16(even));
        store(packed + i * VL + VL, round_to_bf16(odd));
#endif
    }
}

// C^T (round_up(n, PANEL), groups * VL), groups <= BLOCK_GROUPS. `row(i)` is weight row i < n. `after`, which may be
// null, is the first row to prefetch after the last panel.
template <class T, class Row>
static void gemm_packed(const float* a, int64_t group, int64_t groups, const Row& row, int64_t n, int64_t k, float* c,
                        int64_t ldc, bool add, const T* after = nullptr, int64_t after_stride = 0) {
    constexpr int E = Packed<T>::elements;
    int64_t steps = packed_steps<T>(k);
    int64_t block = round_up(ceil_div(steps, ceil_div(steps, BLOCK_STEPS)), 16);
    int tiles = int(ceil_div(groups, MAX_GROUPS));
    for (int64_t s = 0; s < steps; s += block, add = true) {
        int64_t begin = s * E, length = min_of(k - begin, block * E);
        const float* a_block = a + s * Packed<T>::floats;
        bool last_block = s + block >= steps;
        const T *w[PANEL], *next[PANEL];
        for (int r = 0; r < PANEL; r++) w[r] = row(min_of(r, n - 1)) + begin;
        for (int64_t p = 0; p < n; p += PANEL) {
            bool last_panel = p + PANEL >= n;
            for (int r = 0; r < PANEL; r++) {
                if (!last_panel)
                    next[r] = row(min_of(p + PANEL + r, n - 1)) + begin;
                else if (!last_block)
                    next[r] = row(min_of(r, n - 1)) + begin + block * E;
                else
                    next[r] = after ? after + r * after_stride : nullptr;
            }
            bool wanted = next[0] != nullptr;
            for (int t = 0; t < tiles; t++) {
                int64_t g = groups * t / tiles;
                int ask = wanted ? PANEL * t / tiles : 0, asked = wanted ? PANEL * (t + 1) / tiles : 0;
                const float* tile_a = a_block + g * group;
                float* tile_c = c + p * ldc + g * VL;
                switch (groups * (t + 1) / tiles - g) {
                    case 1:
                        packed_tile<T, 1>(tile_a, group, w, length, tile_c, ldc, add, next + ask, asked - ask);
                        break;
                    case 2:
                        packed_tile<T, 2>(tile_a, group, w, length, tile_c, ldc, add, next + ask, asked - ask);
                        break;
                    default:
                        packed_tile<T, MAX_GROUPS>(tile_a, group, w, length, tile_c, ldc, add, next + ask, asked - ask);
                }
            }
            for (int r = 0; r < PANEL; r++) w[r] = next[r];
        }
    }
}

template <class T, int NEXT>
OPENMYTHOS_INLINE void dot_tile_upto(int64_t m, const T* const* a, const T* const* w, int64_t k, float* c, int64_t ldc,
                                     const T* const* next) {
    switch (m) {
        case 1:
            return dot_tile<T, 1, NEXT>(a, w, k, c, ldc, next);
        case 2:
            return dot_tile<T, 2, NEXT>(a, w, k, c, ldc, next);
        case 3:
            return dot_tile<T, 3, NEXT>(a, w, k, c, ldc, next);
        default:
            return dot_tile<T, 4, NEXT>(a, w, k, c, ldc, next);
    }
}

// C^T (n rounded up to DOT_N, rest_stride(m)) for m <= DOT_REST tokens. `after` is what the caller reads next, to
// prefetch it, or null.
template <class T, class Row>
static void gemm_dot(const T* const* a, int64_t m, const Row& row, int64_t n, int64_t k, float* c, int64_t ldc,
                     const T* after = nullptr) {
    constexpr int N = DOT_N<T>;
    if (m == 1) {
        for (int64_t i = 0; i < n; i++) {
            const T* next = i + 1 == n && after ? after : row(i + 1);
            c[i * ldc] = dot_row(a[0], row(i), k, min_of(k, PREFETCH_BYTES / int64_t(sizeof(T))), next);
        }
        return;
    }
    for (int64_t p = 0; p < n; p += N) {
        const T *w[N], *next[N];
        for (int r = 0; r < N; r++) {
            w[r] = row(min_of(p + r, n - 1));
            // Past the end these are only prefetched: the next block of weights usually follows.
            next[r] = row(p + N + r);
        }
        for (int64_t t = 0; t < m; t += DOT_M) {
            float* tile_c = c + p * ldc + t;
            if (m <= DOT_M)
                dot_tile_upto<T, N>(m, a, w, k, tile_c, ldc, next);
            else if (t < 2 * DOT_M)
                dot_tile_upto<T, N / 2>(m - t, a + t, w, k, tile_c, ldc, next + t / DOT_M * (N / 2));
            else
                dot_tile_upto<T, 0>(m - t, a + t, w, k, tile_c, ldc, next);
        }
    }
}

// t[token][o] from c[o][token]; both may be written and read up to the next multiple of 4.
OPENMYTHOS_INLINE void transpose_block(const float* c, int64_t ldc, int64_t n, int64_t m, float* t, int64_t ldt) {
    for (int64_t i = 0; i < n; i += 4) {
        for (int64_t j = 0; j < m; j += 4) {
            const float* from = c + i * ldc + j;
            __m128 x0 = _mm_loadu_ps(from), x1 = _mm_loadu_ps(from + ldc);
            __m128 x2 = _mm_loadu_ps(from + 2 * ldc), x3 = _mm_loadu_ps(from + 3 * ldc);
            _MM_TRANSPOSE4_PS(x0, x1, x2, x3);
            float* to = t + j * ldt + i;
            _mm_storeu_ps(to, x0), _mm_storeu_ps(to + ldt, x1);
            _mm_storeu_ps(to + 2 * ldt, x2), _mm_storeu_ps(to + 3 * ldt, x3);
        }
    }
}

// Rows of C^T that a block of n weight rows writes.
OPENMYTHOS_INLINE int64_t padded_rows(int64_t n) { return round_up(n, 24); }

template <class T>
OPENMYTHOS_INLINE void store_row(const float* from, T* to, int64_t n) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) store(to + i, load(from + i));
    if (i < n) store(to + i, load(from + i, n - i), n - i);
}

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
