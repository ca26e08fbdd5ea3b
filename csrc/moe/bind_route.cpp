#include "../core/register.h"
#include "plan.h"

namespace openmythos {

namespace {

MoeRouteArgs fill(const Checks& check, const Tensor& logits, const std::optional<Tensor>& bias, int64_t k) {
    MoeRouteArgs args{};
    args.logits = check.matrix(logits, "logits", -1, -1);
    const int64_t n = logits.size(0), experts = logits.size(1);
    if (bias) args.bias = check.floats(*bias, "bias", {experts});
    check.require(k >= 1 && k <= experts, "k is ", k, ", expected 1 to ", experts, ", the number of experts");
    if (check.on_gpu()) {
        check.require(experts <= MOE_MAX_EXPERTS, "logits has ", experts, " columns, expected 1 to ", MOE_MAX_EXPERTS);
        check.require(n < runtime::MAX_THREADS / 32, "logits has ", n, " rows, expected fewer than 2^27");
    } else {
        check.require(std::max(n, experts) < int64_t(1) << 31, "logits has ", n, " rows and ", experts,
                      " columns, expected both below 2^31");
    }
    args.rows = int32_t(n), args.experts = int32_t(experts), args.k = int32_t(k);
    return args;
}

void moe_route(const Tensor& logits, const std::optional<Tensor>& bias, int64_t k, const Tensor& ids,
               const Tensor& weights, const Tensor& counts) {
    const Checks check("moe_route", logits);
    MoeRouteArgs args = fill(check, logits, bias, k);
    check.shape(ids, "ids", {args.rows, k});
    check.dtype(ids, "ids", {ScalarType::Int});
    check.shape(weights, "weights", {args.rows, k});
    check.dtype(weights, "weights", {ScalarType::Float});
    check.shape(counts, "counts", {args.experts});
    check.dtype(counts, "counts", {ScalarType::Int});
    args.ids = static_cast<int32_t*>(ids.data_ptr()), args.ids_stride = ids.stride(0);
    args.weights = static_cast<float*>(weights.data_ptr()), args.weights_stride = weights.stride(0);
    args.counts = static_cast<int32_t*>(counts.data_ptr());
    if (!check.on_gpu()) return run_on_cpu<&cpu::Kernels::moe_route>(args);
    const auto planned = runtime::plan(args);
    if (planned.args.add_counts) {
        torch::stable::Tensor zeros = counts.stable();
        torch::stable::zero_(zeros);
    }
    launch(check, planned.launch, &planned.args);
}

std::string moe_route_reason(const Tensor& logits, const std::optional<Tensor>& bias, int64_t k) {
    return reason_of([&] {
        const Checks check("moe_route", logits, Mode::ask);
        fill(check, logits, bias, k);
        require_device(check);
    });
}

}  // namespace

OPENMYTHOS_REGISTER(moe_route, "Tensor logits, Tensor? bias, int k",
                    "Tensor(a!) ids, Tensor(b!) weights, Tensor(c!) counts")

}  // namespace openmythos
