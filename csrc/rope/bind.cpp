#include "../core/register.h"
#include "args.h"

namespace openmythos {

namespace {

RopeArgs fill(const Checks& check, const Tensor& x, const Tensor& cos_sin) {
    RopeArgs args{};
    check.require(!check.on_gpu(), "x is on a GPU, expected the CPU");
    args.type = check.kernel_type(x, "x");
    args.x = check.tensor(x, "x", {-1, -1, -1, -1}, x, "x");
    args.b = x.size(0), args.t = x.size(1), args.h = x.size(2), args.d = x.size(3);
    check.require(args.d % 2 == 0, "x has an innermost size of ", args.d, ", expected an even one");
    check.shape(cos_sin, "cos_sin", {args.t, args.d / 2, 2});
    check.dtype(cos_sin, "cos_sin", {ScalarType::Float});
    check.require(args.d <= 2 || cos_sin.stride(1) == 2, "cos_sin has middle stride ", cos_sin.stride(1),
                  ", expected 2");
    args.cos_sin = static_cast<const float*>(cos_sin.data_ptr()), args.cos_sin_stride = cos_sin.stride(0);
    return args;
}

void rope(const Tensor& x, const Tensor& cos_sin, const Tensor& out) {
    const Checks check("rope", x);
    RopeArgs args = fill(check, x, cos_sin);
    args.out = check.tensor(out, "out", {args.b, args.t, args.h, args.d}, x, "x");
    run_on_cpu<&cpu::Kernels::rope>(args);
}

std::string rope_reason(const Tensor& x, const Tensor& cos_sin) {
    return reason_of([&] {
        const Checks check("rope", x, Mode::ask);
        fill(check, x, cos_sin);
        require_device(check);
    });
}

}  // namespace

OPENMYTHOS_REGISTER(rope, "Tensor x, Tensor cos_sin", "Tensor(a!) out")

}  // namespace openmythos
