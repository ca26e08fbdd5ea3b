#include "../core/register.h"
#include "plan.h"

namespace openmythos {

namespace {

NewOpArgs fill(const Checks& check, const Tensor& x) {
    NewOpArgs args{};
    args.x = check.matrix(x, "x", -1, -1);
    args.n = x.size(0);
    const int64_t d = x.size(1);
    check.require(d < int64_t(1) << 31, "x has ", d, " columns, expected fewer than 2^31");
    if (check.on_gpu()) check.require(args.n < runtime::MAX_ROWS, "x has ", args.n, " rows, expected fewer than 2^31");
    args.d = int32_t(d);
    return args;
}

void newop(const Tensor& x, const Tensor& out) {
    const Checks check("newop", x);
    NewOpArgs args = fill(check, x);
    args.out = check.matrix(out, "out", args.n, args.d);
    if (!check.on_gpu()) return run_on_cpu<&cpu::Kernels::newop>(args);
    if (args.n == 0 || args.d == 0) return;
    const auto planned = runtime::plan(args);
    launch(check, planned.launch, &planned.args);
}

std::string newop_reason(const Tensor& x) {
    return reason_of([&] {
        const Checks check("newop", x, Mode::ask);
        fill(check, x);
        require_device(check);
    });
}

}  // namespace

OPENMYTHOS_REGISTER(newop, "Tensor x", "Tensor(a!) out")

}  // namespace openmythos
