#include <algorithm>

#include "plan.h"

namespace openmythos::runtime {

Planned<RmsNormArgs> plan(RmsNormArgs p) {
    bool fast = p.d % VEC == 0 && is_aligned(p.weight);
    for (const Matrix* x : {&p.x, &p.residual, &p.out, &p.sum})
        if (x->data) fast = fast && is_aligned(*x);
    for (const Matrix* x : {&p.residual, &p.sum})
        if (x->data) fast = fast && x->type == p.x.type;
    p.aligned = fast;
    const char* kernel = "openmythos_rms_norm_any_any";
    if (fast && p.x.type == Type::float32) {
        constexpr const char* names[TYPES] = {"openmythos_rms_norm_f32_f32", "openmythos_rms_norm_f32_bf16",
                                              "openmythos_rms_norm_f32_f16"};
        kernel = names[int(p.out.type)];
    } else if (fast && p.out.type == p.x.type) {
        kernel = p.x.type == Type::bfloat16 ? "openmythos_rms_norm_bf16_bf16" : "openmythos_rms_norm_f16_f16";
    }
    constexpr int64_t MAX_THREADS_PER_ROW = MAX_WIDTH / VEC / 2;  // two vectors per thread
    int64_t wanted = ceil_div(p.d, VEC), threads = std::min(MAX_THREADS_PER_ROW, ceil_div(wanted, 32) * 32);
    return {p, {"rms_norm", kernel, {unsigned(p.n), 1, 1, unsigned(threads), 0}}};
}

}  // namespace openmythos::runtime
