#pragma once

#include "gemm.h"

// Online softmax over blocks of scores held as C^T (keys, query lanes). A query is a lane, so nothing is reduced across
// a vector.

namespace openmythos::cpu::OPENMYTHOS_ISA {

constexpr int64_t KEY_BLOCK = 256;
constexpr int64_t TILE_GROUPS = 3;
constexpr int64_t TILE = TILE_GROUPS * VL;  // queries attended together

// State of the queries of one tile.
struct Online {
    int32_t limit[TILE];  // keys at or past it are masked
    float top[TILE];
    float sum[TILE];
    float rescale[TILE];           // factor for the output summed before the last block
    int32_t max_limit, min_limit;  // over the real queries, without padding lanes

    void start(int64_t queries, int64_t groups) {
        max_limit = 0, min_limit = INT32_MAX;
        for (int64_t q = 0; q < groups * VL; q++) {
            if (q >= queries) limit[q] = 0;
            top[q] = -__builtin_inff(), sum[q] = 0;
            if (q < queries) {
                max_limit = int32_t(max_of(max_limit, limit[q]));
                min_limit = int32_t(min_of(min_limit, limit[q]));
            }
        }
    }
};

// Turns raw scores (keys, groups * VL) of keys first .. first + keys - 1 into packed probabilities.
template <class T>
static void softmax_block(Online& online, float* scores, int64_t first, int64_t keys, int64_t groups, float scale,
                          float* probabilities, int64_t probability_group) {
    const int64_t ldc = groups * VL;
    const vec hidden = set1(-__builtin_inff()), factor = set1(scale);
    // Padding lanes, whose limit is 0, do not count: nothing reads their results.
    const bool masked = online.min_limit < first + keys;
    for (int64_t g = 0; g < groups; g++) {
        float* s = scores + g * VL;
        ivec limit = iload(online.limit + g * VL);
        vec before = load(online.top + g * VL), top = before;
        for (int64_t j = 0; j < keys; j++) {
            vec x = load(s + j * ldc) * factor;
            if (masked) x = select(less(iset1(int32_t(first + j)), limit), x, hidden);
            store(s + j * ldc, x);
            top = vmax(top, x);
        }
        vec origin = select(equal(top, hidden), zero(), top);
        vec rescale = exp(before - origin), sum = load(online.sum + g * VL) * rescale;
        float* p = probabilities + g * probability_group;
        for (int64_t j = 0; j < keys; j += 2) {
            vec even = exp(load(s + j * ldc) - origin);
            vec odd = j + 1 < keys ? exp(load(s + (j + 1) * ldc) - origin) : zero();
            sum = sum + even + odd;
            pack_two<T>(p, j, even, odd);
        }
        store(online.top + g * VL, top);
        store(online.sum + g * VL, sum);
        store(online.rescale + g * VL, rescale);
    }
}

OPENMYTHOS_INLINE float log_of(float x) { return __builtin_logf(x); }

// The sizes of a call as 64-bit integers, so that no product overflows.
struct MlaSizes {
    explicit MlaSizes(const MlaArgs& p) : b(p.b), t(p.t), h(p.h), dn(p.dn), dr(p.dr), dc(p.dc), dv(p.dv) {}
    int64_t b, t, h, dn, dr, dc, dv;
};

OPENMYTHOS_INLINE int64_t visible_keys(const MlaArgs& args, int64_t b, int64_t t) {
    int64_t length = sequence_length(args, b);
    return args.causal ? max_of(0, min_of(length, length - args.t + t + 1)) : length;
}

template <class T>
OPENMYTHOS_INLINE const T* q_nope_row(const MlaArgs& p, int64_t b, int64_t t, int64_t h) {
    return static_cast<const T*>(p.q_nope) + b * p.q_nope_b + t * p.q_nope_t + h * p.q_nope_h;
}
template <class T>
OPENMYTHOS_INLINE const T* q_rope_row(const MlaArgs& p, int64_t b, int64_t t, int64_t h) {
    return static_cast<const T*>(p.q_rope) + b * p.q_rope_b + t * p.q_rope_t + h * p.q_rope_h;
}
template <class T>
OPENMYTHOS_INLINE const T* latent_row(const MlaArgs& p, int64_t b, int64_t s) {
    return static_cast<const T*>(p.latent) + b * p.latent_b + s * p.latent_s;
}
template <class T>
OPENMYTHOS_INLINE const T* k_rope_row(const MlaArgs& p, int64_t b, int64_t s) {
    return static_cast<const T*>(p.k_rope) + b * p.k_rope_b + s * p.k_rope_s;
}
template <class T>
OPENMYTHOS_INLINE const T* w_uk_row(const MlaArgs& p, int64_t h, int64_t n) {
    return static_cast<const T*>(p.w_uk) + h * p.w_uk_h + n * p.w_uk_n;
}
template <class T>
OPENMYTHOS_INLINE const T* w_uv_row(const MlaArgs& p, int64_t h, int64_t v) {
    return static_cast<const T*>(p.w_uv) + h * p.w_uv_h + v * p.w_uv_v;
}
template <class T>
OPENMYTHOS_INLINE T* out_row(const MlaArgs& p, int64_t b, int64_t t, int64_t h) {
    return static_cast<T*>(p.out) + b * p.out_b + t * p.out_t + h * p.out_h;
}

// A query that sees no key gives zeros and a log-sum-exp of -inf.
OPENMYTHOS_INLINE void set_lse(const MlaArgs& p, int64_t b, int64_t h, int64_t t, float top, float sum) {
    if (!p.lse) return;
    p.lse[(b * p.h + h) * p.t + t] = sum == 0 ? -__builtin_inff() : top + log_of(sum);
}

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
