#pragma once

#include "gemm_tiles.h"

// O (+)= A B with B (K, N) and contiguous N, where the other tiles need contiguous K: sums of B's rows. The latent
// cache and w_uk are multiplied in this direction without a transposed copy.

namespace openmythos::cpu::OPENMYTHOS_ISA {

// R rows by the first n of 2 * VL columns. `factor` scales the old O, one per row; null overwrites it.
template <class T, int R>
static void fold_tile(const float* a, const T* b, int64_t ldb, int64_t k, int64_t n, const float* factor, float* o,
                      int64_t ldo) {
    vec acc[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = zero();
#ifdef __AVX512BF16__
    if constexpr (type_of<T> == Type::bfloat16) {
        auto columns = [&](int64_t i) __attribute__((always_inline)) {
            return n == 2 * VL ? iload(b + i * ldb) : load_pairs(b + i * ldb, n);
        };
        for (int64_t i = 0; i < k; i += 2, a += VL) {
            ivec even = columns(i), odd = i + 1 < k ? columns(i + 1) : _mm512_setzero_si512();
            ivec low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                ivec x = iset1(load32(a + r));
                acc[r][0] = dot_pairs(acc[r][0], low, x);
                acc[r][1] = dot_pairs(acc[r][1], high, x);
            }
        }
        // unpack works inside 128-bit lanes: columns 0-3, 8-11, 16-19, 24-27 are in the low sums.
        const ivec first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        const ivec second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            vec low = acc[r][0], high = acc[r][1];
            acc[r][0] = _mm512_permutex2var_ps(low, first, high);
            acc[r][1] = _mm512_permutex2var_ps(low, second, high);
        }
    } else
#endif
    {
        for (int64_t i = 0; i < k; i++, a += VL) {
            const T* row = b + i * ldb;
            vec x0 = n == 2 * VL ? load(row) : load_upto(row, n);
            vec x1 = n == 2 * VL ? load(row + VL) : n > VL ? load_upto(row + VL, n - VL) : zero();
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                vec x = set1(a[r]);
                acc[r][0] = fma(x, x0, acc[r][0]);
                acc[r][1] = fma(x, x1, acc[r][1]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        float* to = o + r * ldo;
        vec f = set1(factor ? factor[r] : 0.f);
        store(to, factor ? fma(f, load(to), acc[r][0]) : acc[r][0]);
        store(to + VL, factor ? fma(f, load(to + VL), acc[r][1]) : acc[r][1]);
    }
}

// O (rows, round_up(n, 2 * VL)). Rows of A are lanes of packed groups; up to 7 rows past the last are written.
template <class T>
static void fold(const float* a, int64_t group, int64_t rows, const T* b, int64_t ldb, int64_t k, int64_t n,
                 const float* factor, float* o, int64_t ldo) {
    constexpr int C = 2 * VL;
    for (int64_t c = 0; c < n; c += C) {
        int64_t width = min_of(C, n - c);
        for (int64_t r = 0; r < rows; r += 8) {
            const float* x = a + r / VL * group + r % VL;
            const float* f = factor ? factor + r : nullptr;
            float* to = o + r * ldo + c;
            switch (rows - r) {
                case 1:
                    fold_tile<T, 1>(x, b + c, ldb, k, width, f, to, ldo);
                    break;
                case 2:
                    fold_tile<T, 2>(x, b + c, ldb, k, width, f, to, ldo);
                    break;
                case 3:
                case 4:
                    fold_tile<T, 4>(x, b + c, ldb, k, width, f, to, ldo);
                    break;
                default:
                    fold_tile<T, 8>(x, b + c, ldb, k, width, f, to, ldo);
            }
        }
    }
}

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
