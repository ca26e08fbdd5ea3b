#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"

#define OPENMYTHOS_INLINE_MEMBER inline __attribute__((always_inline))
#define OPENMYTHOS_INLINE static OPENMYTHOS_INLINE_MEMBER

namespace openmythos::cpu::OPENMYTHOS_ISA {

struct bf16 {
    uint16_t bits;
};

template <class T>
constexpr Type type_of = Type::float32;
template <>
inline constexpr Type type_of<bf16> = Type::bfloat16;

OPENMYTHOS_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
OPENMYTHOS_INLINE int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
OPENMYTHOS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
OPENMYTHOS_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

OPENMYTHOS_INLINE float to_float(float x) { return x; }
OPENMYTHOS_INLINE float to_float(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

#ifdef __AVX512F__

constexpr int VL = 16;
using vec = __m512;
using ivec = __m512i;
using mask = __mmask16;

OPENMYTHOS_INLINE vec set1(float x) { return _mm512_set1_ps(x); }
OPENMYTHOS_INLINE vec zero() { return _mm512_setzero_ps(); }
OPENMYTHOS_INLINE vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
OPENMYTHOS_INLINE vec vmax(vec a, vec b) { return _mm512_max_ps(a, b); }
OPENMYTHOS_INLINE vec vmin(vec a, vec b) { return _mm512_min_ps(a, b); }
OPENMYTHOS_INLINE ivec iset1(int32_t x) { return _mm512_set1_epi32(x); }
OPENMYTHOS_INLINE ivec iload(const void* p) { return _mm512_loadu_si512(p); }
OPENMYTHOS_INLINE mask less(ivec a, ivec b) { return _mm512_cmplt_epi32_mask(a, b); }
OPENMYTHOS_INLINE mask equal(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
// m ? a : b
OPENMYTHOS_INLINE vec select(mask m, vec a, vec b) { return _mm512_mask_blend_ps(m, b, a); }

OPENMYTHOS_INLINE __mmask16 first(int64_t n) { return __mmask16(_bzhi_u32(0xffff, uint32_t(n))); }
OPENMYTHOS_INLINE vec load(const float* p) { return _mm512_loadu_ps(p); }
OPENMYTHOS_INLINE vec load(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
OPENMYTHOS_INLINE void store(float* p, vec x) { _mm512_storeu_ps(p, x); }
OPENMYTHOS_INLINE void store(float* p, vec x, int64_t n) { _mm512_mask_storeu_ps(p, first(n), x); }

OPENMYTHOS_INLINE vec widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
OPENMYTHOS_INLINE vec load(const bf16* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
OPENMYTHOS_INLINE vec load(const bf16* p, int64_t n) { return widen(_mm256_maskz_loadu_epi16(first(n), p)); }

#ifdef __AVX512BF16__
OPENMYTHOS_INLINE __m256i narrow(vec x) { return (__m256i)_mm512_cvtneps_pbh(x); }
#else
OPENMYTHOS_INLINE __m256i narrow(vec x) {
    ivec bits = _mm512_castps_si512(x);
    ivec odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), iset1(1));
    ivec rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, iset1(0x7fff)), odd), 16);
    mask nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, rounded, iset1(0x7fc0)));
}
#endif
OPENMYTHOS_INLINE void store(bf16* p, vec x) { _mm256_storeu_si256((__m256i*)p, narrow(x)); }
OPENMYTHOS_INLINE void store(bf16* p, vec x, int64_t n) { _mm256_mask_storeu_epi16(p, first(n), narrow(x)); }
OPENMYTHOS_INLINE vec round_to_bf16(vec x) { return widen(narrow(x)); }

OPENMYTHOS_INLINE void stream(float* p, vec x) { _mm512_stream_ps(p, x); }
OPENMYTHOS_INLINE void stream(bf16* p, vec x) { _mm256_stream_si256((__m256i*)p, narrow(x)); }

OPENMYTHOS_INLINE float sum(vec x) { return _mm512_reduce_add_ps(x); }

// {sum(a), sum(b), sum(c), sum(d)}.
OPENMYTHOS_INLINE __m128 sum4(vec a, vec b, vec c, vec d) {
    vec ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
    vec cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
    __m512d lo = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    __m512d hi = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    vec quad = _mm512_castpd_ps(lo) + _mm512_castpd_ps(hi);
    __m256 half = _mm512_castps512_ps256(quad) + _mm512_extractf32x8_ps(quad, 1);
    return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
}

// 2^n * x for integral n, with gradual underflow and overflow to infinity.
OPENMYTHOS_INLINE vec scale_by_power(vec x, vec n) { return _mm512_scalef_ps(x, n); }
OPENMYTHOS_INLINE vec round_even(vec x) { return _mm512_roundscale_ps(x, 8); }

#else

constexpr int VL = 8;
using vec = __m256;
using ivec = __m256i;
using mask = __m256;

OPENMYTHOS_INLINE vec set1(float x) { return _mm256_set1_ps(x); }
OPENMYTHOS_INLINE vec zero() { return _mm256_setzero_ps(); }
OPENMYTHOS_INLINE vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
OPENMYTHOS_INLINE vec vmax(vec a, vec b) { return _mm256_max_ps(a, b); }
OPENMYTHOS_INLINE vec vmin(vec a, vec b) { return _mm256_min_ps(a, b); }
OPENMYTHOS_INLINE ivec iset1(int32_t x) { return _mm256_set1_epi32(x); }
OPENMYTHOS_INLINE ivec iload(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
OPENMYTHOS_INLINE mask less(ivec a, ivec b) { return _mm256_castsi256_ps(_mm256_cmpgt_epi32(b, a)); }
OPENMYTHOS_INLINE mask equal(vec a, vec b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
OPENMYTHOS_INLINE vec select(mask m, vec a, vec b) { return _mm256_blendv_ps(b, a, m); }

OPENMYTHOS_INLINE vec load(const float* p) { return _mm256_loadu_ps(p); }
OPENMYTHOS_INLINE vec load(const float* p, int64_t n) {
    alignas(32) float padded[VL] = {};
    memcpy(padded, p, size_t(n) * 4);
    return _mm256_load_ps(padded);
}
OPENMYTHOS_INLINE void store(float* p, vec x) { _mm256_storeu_ps(p, x); }
OPENMYTHOS_INLINE void store(float* p, vec x, int64_t n) {
    alignas(32) float padded[VL];
    _mm256_store_ps(padded, x);
    memcpy(p, padded, size_t(n) * 4);
}

OPENMYTHOS_INLINE vec widen(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
OPENMYTHOS_INLINE vec load(const bf16* p) { return widen(_mm_loadu_si128((const __m128i*)p)); }
OPENMYTHOS_INLINE vec load(const bf16* p, int64_t n) {
    alignas(16) bf16 padded[VL] = {};
    memcpy(padded, p, size_t(n) * 2);
    return widen(_mm_load_si128((const __m128i*)padded));
}
OPENMYTHOS_INLINE __m128i narrow(vec x) {
    ivec bits = _mm256_castps_si256(x);
    ivec odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), iset1(1));
    ivec rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, iset1(0x7fff)), odd), 16);
    ivec nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, iset1(0x7fc0), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}
OPENMYTHOS_INLINE void store(bf16* p, vec x) { _mm_storeu_si128((__m128i*)p, narrow(x)); }
OPENMYTHOS_INLINE void store(bf16* p, vec x, int64_t n) {
    alignas(16) bf16 padded[VL];
    _mm_store_si128((__m128i*)padded, narrow(x));
    memcpy(p, padded, size_t(n) * 2);
}
OPENMYTHOS_INLINE vec round_to_bf16(vec x) { return widen(narrow(x)); }

OPENMYTHOS_INLINE void stream(float* p, vec x) { _mm256_stream_ps(p, x); }
OPENMYTHOS_INLINE void stream(bf16* p, vec x) { _mm_stream_si128((__m128i*)p, narrow(x)); }

OPENMYTHOS_INLINE __m128 sum4(vec a, vec b, vec c, vec d) {
    vec quad = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm256_castps256_ps128(quad) + _mm256_extractf128_ps(quad, 1);
}
OPENMYTHOS_INLINE float sum(vec x) { return _mm_cvtss_f32(sum4(x, zero(), zero(), zero())); }

OPENMYTHOS_INLINE vec power(ivec n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, iset1(127)), 23));
}
OPENMYTHOS_INLINE vec scale_by_power(vec x, vec n) {
    // Two factors, because 2^n alone leaves the normal range before the product does.
    ivec whole = _mm256_cvtps_epi32(vmin(vmax(n, set1(-252.f)), set1(252.f)));
    ivec half = _mm256_srai_epi32(whole, 1);
    return x * power(half) * power(_mm256_sub_epi32(whole, half));
}
OPENMYTHOS_INLINE vec round_even(vec x) { return _mm256_round_ps(x, 8); }

#endif

template <class T>
OPENMYTHOS_INLINE vec load_upto(const T* p, int64_t n) {
    return n >= VL ? load(p) : load(p, n);
}
template <class T>
OPENMYTHOS_INLINE void store_upto(T* p, vec x, int64_t n) {
    n >= VL ? store(p, x) : store(p, x, n);
}

// exp(x) to about 1 ulp; NaN stays NaN.
OPENMYTHOS_INLINE vec exp(vec x) {
    // vmax and vmin return their second operand when either is NaN.
    x = vmin(set1(100.f), vmax(set1(-110.f), x));
    vec n = round_even(x * set1(1.44269504088896341f));
    vec r = fma(n, set1(-0.693359375f), x);
    r = fma(n, set1(2.12194440e-4f), r);
    vec p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = fma(p, r * r, r) + set1(1.f);
    return scale_by_power(p, n);
}

OPENMYTHOS_INLINE vec silu(vec x) { return x / (set1(1.f) + exp(zero() - x)); }

OPENMYTHOS_INLINE float exp(float x) {
    float y[VL];
    store(y, exp(set1(x)));
    return y[0];
}

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
