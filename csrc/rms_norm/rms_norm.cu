#include "../core/gpu/reduce.h"
#include "../core/gpu/rows.h"
#include "args.h"

// out = s * rsqrt(mean(s^2) + eps) * weight with s = x + residual. One block per row, which stays in registers.

namespace openmythos::gpu {

constexpr int NORM_THREADS = 1024, VECTORS_PER_THREAD = 2;  // rows of up to 16384 columns

template <class In, class Out>
OPENMYTHOS_DEVICE void rms_norm(const RmsNormArgs& p) {
    __shared__ float scratch[NORM_THREADS / WAVE];
    const int64_t n = block_index();
    const int step = block_threads() * VEC;
    float s[VECTORS_PER_THREAD][VEC], squares[1] = {0.f};
    In x = In::of(p.x, n);
#pragma unroll
    for (int c = 0; c < VECTORS_PER_THREAD; c++) {
        int i = thread_index() * VEC + c * step;
        if (i >= p.d) continue;
        x.load(i, p.d - i, s[c]);
        if (p.residual.data) {
            float added[VEC];
            In::of(p.residual, n).load(i, p.d - i, added);
#pragma unroll
            for (int j = 0; j < VEC; j++) s[c][j] += added[j];
        }
        if (p.sum.data) {
            In::of(p.sum, n).store(i, p.d - i, s[c]);
        }
#pragma unroll
        for (int j = 0; j < VEC; j++) squares[0] = fma(s[c][j], s[c][j], squares[0]);
    }
    block_sums(squares, scratch);
    const float scale = inverse_sqrt(squares[0] / float(p.d) + p.eps);
    Out out = Out::of(p.out, n);
#pragma unroll
    for (int c = 0; c < VECTORS_PER_THREAD; c++) {
        int i = thread_index() * VEC + c * step;
        if (i >= p.d) continue;
        float weight[VEC];
        if constexpr (__is_same(In, AnyRow)) {
            AnyRow{const_cast<void*>(p.weight), p.weight_type}.load(i, p.d - i, weight);
        } else {
            // The weight may have any type: a branch that is uniform over the grid.
            const char* from =
                static_cast<const char*>(p.weight) + int64_t(i) * (p.weight_type == Type::float32 ? 4 : 2);
            Words raw[2] = {load_cached(from), {}};
            if (p.weight_type == Type::float32) {
                raw[1] = load_cached(from + 16);
                unpack<float>(raw, weight);
            } else if (p.weight_type == Type::bfloat16) {
                unpack<bf16>(raw, weight);
            } else {
                unpack<f16>(raw, weight);
            }
        }
#pragma unroll
        for (int j = 0; j < VEC; j++) s[c][j] = s[c][j] * scale * weight[j];
        out.store(i, p.d - i, s[c]);
    }
}

#define OPENMYTHOS_RMS_NORM(in, out, In, Out) \
    OPENMYTHOS_KERNEL(NORM_THREADS) openmythos_rms_norm_##in##_##out(RmsNormArgs p) { rms_norm<In, Out>(p); }

OPENMYTHOS_RMS_NORM(f32, f32, FastRow<float>, FastRow<float>)
OPENMYTHOS_RMS_NORM(f32, bf16, FastRow<float>, FastRow<bf16>)
OPENMYTHOS_RMS_NORM(f32, f16, FastRow<float>, FastRow<f16>)
OPENMYTHOS_RMS_NORM(bf16, bf16, FastRow<bf16>, FastRow<bf16>)
OPENMYTHOS_RMS_NORM(f16, f16, FastRow<f16>, FastRow<f16>)
OPENMYTHOS_RMS_NORM(any, any, AnyRow, AnyRow)

}  // namespace openmythos::gpu
