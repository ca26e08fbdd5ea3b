#include "../core/register.h"
#include "plan.h"

namespace openmythos {

namespace {

RmsNormArgs fill(const Checks& check, const Tensor& x, const std::optional<Tensor>& residual, const Tensor& weight,
                 double eps) {
    RmsNormArgs args{};
    args.x = check.matrix(x, "x", -1, -1);
    args.n = x.size(0);
    const int64_t d = x.size(1);
    if (residual) args.residual = check.matrix(*residual, "residual", args.n, d);
    check.shape(weight, "weight", {d});
    args.weight = weight.data_ptr(), args.weight_type = check.kernel_type(weight, "weight");
    if (check.on_gpu()) {
        check.require(d >= 1 && d <= runtime::MAX_WIDTH, "x has ", d, " columns, expected 1 to ", runtime::MAX_WIDTH);
        check.require(args.n < runtime::MAX_ROWS, "x has ", args.n, " rows, expected fewer than 2^31");
    } else {
        check.require(d < int64_t(1) << 31, "x has ", d, " columns, expected fewer than 2^31");
    }
    args.d = int32_t(d), args.eps = float(eps);
    return args;
}

void rms_norm(const Tensor& x, const std::optional<Tensor>& residual, const Tensor& weight, double eps,
              const Tensor& out, const std::optional<Tensor>& sum) {
    const Checks check("rms_norm", x);
    RmsNormArgs args = fill(check, x, residual, weight, eps);
    args.out = check.matrix(out, "out", args.n, args.d);
    if (sum) args.sum = check.matrix(*sum, "sum", args.n, args.d);
    if (!check.on_gpu()) return run_on_cpu<&cpu::Kernels::rms_norm>(args);
    if (args.n == 0) return;
    const auto planned = runtime::plan(args);
    launch(check, planned.launch, &planned.args);
}

std::string rms_norm_reason(const Tensor& x, const std::optional<Tensor>& residual, const Tensor& weight, double eps) {
    return reason_of([&] {
        const Checks check("rms_norm", x, Mode::ask);
        fill(check, x, residual, weight, eps);
        require_device(check);
    });
}

}  // namespace

OPENMYTHOS_REGISTER(rms_norm, "Tensor x, Tensor? residual, Tensor weight, float eps", "Tensor(a!) out, Tensor(b!)? sum")

}  // namespace openmythos
