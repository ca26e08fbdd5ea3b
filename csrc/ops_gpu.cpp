#include "ops_gpu.h"

#include <dlfcn.h>

#include "runtime/stream.h"

namespace openmythos::on_gpu {

namespace {

// Beside this library, wherever it is.
std::string code_objects_folder() {
    Dl_info info{};
    dladdr(reinterpret_cast<const void*>(&code_objects_folder), &info);
    std::string path = info.dli_fname ? info.dli_fname : "";
    size_t slash = path.rfind('/');
    return (slash == std::string::npos ? "." : path.substr(0, slash)) + "/gpu";
}

}  // namespace

runtime::Runtime& gpu_runtime() {
    static runtime::Runtime runtime(code_objects_folder());
    return runtime;
}

Type gpu_type(const Checks& check, const Tensor& x, const char* name) {
    check.dtype(x, name, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
    switch (x.scalar_type()) {
        case ScalarType::Float:
            return Type::float32;
        case ScalarType::BFloat16:
            return Type::bfloat16;
        default:
            return Type::float16;
    }
}

gpu::Rows rows(const Checks& check, const Tensor& x, const char* name, int64_t n, int64_t d) {
    check.shape(x, name, {n, d});
    return {x.data_ptr(), x.stride(0), gpu_type(check, x, name), 0};
}

void launch(const Checks& check, const runtime::Launch& plan) {
    gpu_runtime().launch(plan, check.device(), runtime::current_stream(check.device()));
}

namespace {

void check_width(const Checks& check, int64_t n, int64_t d) {
    check.require(d >= 1 && d <= runtime::MAX_WIDTH, "the rows have ", d, " columns, expected 1 to ",
                  runtime::MAX_WIDTH);
    check.require(n < int64_t(1) << 31, "there are ", n, " rows, expected fewer than 2^31");
}

void rms_norm(const Tensor& x, const std::optional<Tensor>& residual, const Tensor& weight, double eps,
              const Tensor& out, const std::optional<Tensor>& sum) {
    Checks check("rms_norm", OPENMYTHOS_GPU_WHERE);
    RmsNormArgs args{};
    args.x = rows(check, x, "x", -1, -1);
    args.n = x.size(0);
    int64_t d = x.size(1);
    if (residual) args.residual = rows(check, *residual, "residual", args.n, d);
    check.shape(weight, "weight", {d});
    args.weight = weight.data_ptr(), args.weight_type = gpu_type(check, weight, "weight");
    args.out = rows(check, out, "out", args.n, d);
    if (sum) args.sum = rows(check, *sum, "sum", args.n, d);
    check_width(check, args.n, d);
    args.d = int32_t(d), args.eps = float(eps);
    if (args.n) launch(check, runtime::plan(args));
}

void loop_step(const Tensor& h, const Tensor& e, const Tensor& block_out, const Tensor& h_out, const Tensor& cum_p,
               const Tensor& a, const Tensor& b, const Tensor& lora_down, const Tensor& lora_scale,
               const Tensor& lora_b, const Tensor& halt_w, const Tensor& halt_b, const std::optional<Tensor>& norm_w,
               const std::optional<Tensor>& t_rows, int64_t t, double threshold, double eps, int64_t loop_dim,
               const Tensor& h_new, const Tensor& h_out_new, const Tensor& cum_p_new,
               const std::optional<Tensor>& x_next) {
    Checks check("loop_step", OPENMYTHOS_GPU_WHERE);
    LoopStepArgs args{};
    args.h = rows(check, h, "h", -1, -1);
    int64_t n = h.size(0), d = h.size(1);
    args.e = rows(check, e, "e", n, d);
    args.block_out = rows(check, block_out, "block_out", n, d);
    args.h_out = rows(check, h_out, "h_out", n, d);
    check.dtype(h_out, "h_out", {ScalarType::Float});
    args.cum_p = check.floats(cum_p, "cum_p", {n});
    args.a = check.floats(a, "A", {d});
    args.b = check.floats(b, "B", {d});
    args.lora_down = check.floats(lora_down, "lora_down", {-1, d});
    int64_t rank = lora_down.size(0);
    args.lora_scale = check.floats(lora_scale, "lora_scale", {-1, rank});
    int64_t scale_rows = lora_scale.size(0);
    check.require(scale_rows >= 1 && scale_rows < int64_t(1) << 20, "lora_scale has ", scale_rows,
                  " rows, expected 1 or more, and fewer than 2^20");
    args.lora_b = check.floats(lora_b, "lora_b", {rank, d});
    args.halt_w = check.floats(halt_w, "halt_w", {d});
    args.halt_b = check.floats(halt_b, "halt_b", {1});
    check.require(t >= 0 && t < int64_t(1) << 30, "t is ", t, ", expected 0 or more, and less than 2^30");
    if (t_rows) {
        check.shape(*t_rows, "t_rows", {n});
        check.dtype(*t_rows, "t_rows", {ScalarType::Int});
        args.t_rows = static_cast<const int32_t*>(t_rows->data_ptr());
    }
    args.h_new = rows(check, h_new, "h_new", n, d);
    check.same_type(h_new, "h_new", h, "h");
    args.h_out_new = rows(check, h_out_new, "h_out_new", n, d);
    check.dtype(h_out_new, "h_out_new", {ScalarType::Float});
    args.cum_p_new = const_cast<float*>(check.floats(cum_p_new, "cum_p_new", {n}));
    if (x_next) {
        args.x_next = rows(check, *x_next, "x_next", n, d);
        check.require(norm_w.has_value(), "norm_w is None, expected a tensor because x_next is given");
    }
    if (norm_w) args.norm_w = check.floats(*norm_w, "norm_w", {d});
    check_width(check, n, d);
    check.require(rank <= runtime::MAX_RANK, "lora_down has ", rank, " rows, expected at most ", runtime::MAX_RANK);
    check.require(loop_dim >= 0 && loop_dim <= d && loop_dim <= runtime::MAX_LOOP_DIM, "loop_dim is ", loop_dim,
                  ", expected 0 to ", std::min(d, runtime::MAX_LOOP_DIM));
    args.n = n, args.d = int32_t(d), args.rank = int32_t(rank), args.scale_rows = int32_t(scale_rows);
    args.loop_dim = int32_t(loop_dim), args.t = int32_t(t);
    args.threshold = float(threshold), args.eps = float(eps);
    if (n) launch(check, runtime::plan(args, gpu_runtime().multiprocessors(check.device())));
}

std::string gpu_reason(int64_t device) { return gpu_runtime().why_not(int(device)); }
std::string gpu_code() { return gpu_runtime().describe(); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(OPENMYTHOS_GPU_LIBRARY, m) {
    m.def("gpu_reason(int device) -> str");
    m.def("gpu_code() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(OPENMYTHOS_GPU_LIBRARY, OPENMYTHOS_GPU_KEY, m) {
    m.impl("rms_norm", boxed<rms_norm>);
    m.impl("moe_route", boxed<moe_route>);
    m.impl("moe_experts", boxed<moe_experts>);
    m.impl("moe", boxed<moe>);
    m.impl("loop_step", boxed<loop_step>);
    m.impl("mla_attention", boxed<mla_attention>);
}

STABLE_TORCH_LIBRARY_IMPL(OPENMYTHOS_GPU_LIBRARY, CompositeExplicitAutograd, m) {
    m.impl("gpu_reason", boxed<gpu_reason>);
    m.impl("gpu_code", boxed<gpu_code>);
}

}  // namespace openmythos::on_gpu
