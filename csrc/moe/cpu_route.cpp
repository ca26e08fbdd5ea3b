#include "tasks.h"

namespace openmythos::cpu::OPENMYTHOS_ISA {

constexpr int64_t ROUTE_ROWS = 64;

template <class T>
static void route_row(const T* logits, const float* bias, int64_t experts, int64_t k, int32_t* ids, float* weights) {
    // The best so far, in order; `weights` holds their scores. Strict comparisons, so that ties go to the lower id.
    int64_t held = 0;
    for (int64_t e = 0; e < experts; e++) {
        float score = to_float(logits[e]) + (bias ? bias[e] : 0.f);
        if (score != score) score = -__builtin_inff();
        if (held == k && !(score > weights[k - 1])) continue;
        int64_t at = held < k ? held++ : k - 1;
        for (; at > 0 && score > weights[at - 1]; at--) weights[at] = weights[at - 1], ids[at] = ids[at - 1];
        weights[at] = score, ids[at] = int32_t(e);
    }
    float top = -__builtin_inff(), sum = 0;
    for (int64_t j = 0; j < k; j++) {
        weights[j] = to_float(logits[ids[j]]);
        if (weights[j] > top) top = weights[j];
    }
    for (int64_t j = 0; j < k; j += VL) {
        int64_t n = min_of(VL, k - j);
        store_upto(weights + j, exp(load_upto(weights + j, n) - set1(top)), n);
    }
    for (int64_t j = 0; j < k; j++) sum += weights[j];
    for (int64_t j = 0; j < k; j++) weights[j] /= sum;
}

void moe_route(const Threads& threads, const MoeRouteArgs& args) {
    const int64_t rows = args.rows;
    for_tasks(threads, ceil_div(rows, ROUTE_ROWS), [&](int64_t task, int64_t) {
        for (int64_t n = task * ROUTE_ROWS; n < min_of(rows, (task + 1) * ROUTE_ROWS); n++) {
            int32_t* ids = args.ids + n * args.ids_stride;
            float* weights = args.weights + n * args.weights_stride;
            if (args.logits.type == Type::float32)
                route_row(static_cast<const float*>(args.logits.data) + n * args.logits.stride, args.bias, args.experts,
                          args.k, ids, weights);
            else
                route_row(static_cast<const bf16*>(args.logits.data) + n * args.logits.stride, args.bias, args.experts,
                          args.k, ids, weights);
        }
    });
    for (int64_t e = 0; e < args.experts; e++) args.counts[e] = 0;
    for (int64_t n = 0; n < rows; n++)
        for (int64_t j = 0; j < args.k; j++) args.counts[args.ids[n * args.ids_stride + j]]++;
}

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
