#include "../core/register.h"
#include "args.h"

// CPU only: on GPUs cuBLAS and hipBLASLt compute dense products.

namespace openmythos {

namespace {

LinearArgs fill(const Checks& check, const Tensor& x, const Tensor& weight) {
    LinearArgs args{};
    check.require(!check.on_gpu(), "x is on a GPU, expected the CPU");
    args.x = check.matrix(x, "x", -1, -1);
    args.n = x.size(0), args.k = x.size(1);
    args.weight = check.matrix(weight, "weight", -1, args.k);
    args.o = weight.size(0);
    check.same_type(weight, "weight", x, "x");
    return args;
}

SwigluArgs fill(const Checks& check, const Tensor& x, const Tensor& gate, const Tensor& up, const Tensor& down) {
    SwigluArgs args{};
    check.require(!check.on_gpu(), "x is on a GPU, expected the CPU");
    args.x = check.matrix(x, "x", -1, -1);
    args.n = x.size(0), args.d = x.size(1);
    args.gate = check.matrix(gate, "gate", -1, args.d);
    args.i = gate.size(0);
    args.up = check.matrix(up, "up", args.i, args.d);
    args.down = check.matrix(down, "down", -1, args.i);
    args.o = down.size(0);
    check.same_type(gate, "gate", x, "x");
    check.same_type(up, "up", x, "x");
    check.same_type(down, "down", x, "x");
    return args;
}

void linear(const Tensor& x, const Tensor& weight, const Tensor& out) {
    const Checks check("linear", x);
    LinearArgs args = fill(check, x, weight);
    args.out = check.matrix(out, "out", args.n, args.o);
    check.same_type(out, "out", x, "x");
    run_on_cpu<&cpu::Kernels::linear>(args);
}

std::string linear_reason(const Tensor& x, const Tensor& weight) {
    return reason_of([&] {
        const Checks check("linear", x, Mode::ask);
        fill(check, x, weight);
        require_device(check);
    });
}

void swiglu(const Tensor& x, const Tensor& gate, const Tensor& up, const Tensor& down, const Tensor& out) {
    const Checks check("swiglu", x);
    SwigluArgs args = fill(check, x, gate, up, down);
    args.out = check.matrix(out, "out", args.n, args.o);
    check.same_type(out, "out", x, "x");
    run_on_cpu<&cpu::Kernels::swiglu>(args);
}

std::string swiglu_reason(const Tensor& x, const Tensor& gate, const Tensor& up, const Tensor& down) {
    return reason_of([&] {
        const Checks check("swiglu", x, Mode::ask);
        fill(check, x, gate, up, down);
        require_device(check);
    });
}

}  // namespace

OPENMYTHOS_REGISTER(linear, "Tensor x, Tensor weight", "Tensor(a!) out")
OPENMYTHOS_REGISTER(swiglu, "Tensor x, Tensor gate, Tensor up, Tensor down", "Tensor(a!) out")

}  // namespace openmythos
