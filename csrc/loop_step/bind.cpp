#include "../core/register.h"
#include "plan.h"

namespace openmythos {

namespace {

LoopStepArgs fill(const Checks& check, const Tensor& h, const Tensor& e, const Tensor& block_out, const Tensor& h_out,
                  const Tensor& cum_p, const Tensor& a, const Tensor& b, const Tensor& lora_down,
                  const Tensor& lora_scale, const Tensor& lora_b, const Tensor& halt_w, const Tensor& halt_b,
                  const std::optional<Tensor>& norm_w, int64_t t, const std::optional<Tensor>& t_rows, double threshold,
                  double eps, int64_t loop_dim, const std::optional<Tensor>& x_next) {
    LoopStepArgs args{};
    args.h = check.matrix(h, "h", -1, -1);
    const int64_t n = h.size(0), d = h.size(1);
    args.e = check.matrix(e, "e", n, d);
    args.block_out = check.matrix(block_out, "block_out", n, d);
    args.h_out = check.matrix(h_out, "h_out", n, d);
    check.dtype(h_out, "h_out", {ScalarType::Float});
    args.cum_p = check.floats(cum_p, "cum_p", {n});
    args.a = check.floats(a, "A", {d});
    args.b = check.floats(b, "B", {d});
    args.lora_down = check.floats(lora_down, "lora_down", {-1, d});
    const int64_t rank = lora_down.size(0);
    args.lora_scale = check.floats(lora_scale, "lora_scale", {-1, rank});
    const int64_t scales = lora_scale.size(0);
    args.lora_b = check.floats(lora_b, "lora_b", {rank, d});
    args.halt_w = check.floats(halt_w, "halt_w", {d});
    args.halt_b = check.floats(halt_b, "halt_b", {1});
    if (norm_w) args.norm_w = check.floats(*norm_w, "norm_w", {d});
    if (x_next) {
        args.x_next = check.matrix(*x_next, "x_next", n, d);
        check.require(norm_w.has_value(), "norm_w is None, expected a tensor because x_next is given");
    }
    check.require(scales >= 1 && scales < runtime::MAX_SCALES, "lora_scale has ", scales,
                  " rows, expected 1 or more and fewer than 2^20");
    check.require(t >= 0 && t < runtime::MAX_LOOP, "t is ", t, ", expected 0 or more and less than 2^30");
    if (t_rows) {
        check.shape(*t_rows, "t_rows", {n});
        check.dtype(*t_rows, "t_rows", {ScalarType::Int});
        args.t_rows = static_cast<const int32_t*>(t_rows->data_ptr());
    }
    check.require(loop_dim >= 0 && loop_dim <= d, "loop_dim is ", loop_dim, ", expected 0 to ", d);
    if (check.on_gpu()) {
        check.require(d >= 1 && d <= runtime::MAX_WIDTH, "h has ", d, " columns, expected 1 to ", runtime::MAX_WIDTH);
        check.require(n < runtime::MAX_ROWS, "h has ", n, " rows, expected fewer than 2^31");
        check.require(rank <= runtime::MAX_RANK, "lora_down has rank ", rank, ", expected at most ", runtime::MAX_RANK);
        check.require(loop_dim <= runtime::MAX_LOOP_DIM, "loop_dim is ", loop_dim, ", expected at most ",
                      runtime::MAX_LOOP_DIM);
    } else {
        check.require(std::max(d, rank) < int64_t(1) << 31, "h has ", d, " columns and lora_down rank ", rank,
                      ", expected both below 2^31");
        // On a GPU reading the values would synchronise with the host.
        for (int64_t row = 0; args.t_rows && row < n; row++)
            check.require(args.t_rows[row] >= 0, "t_rows[", row, "] is ", args.t_rows[row], ", expected 0 or more");
    }
    args.n = n, args.d = int32_t(d), args.rank = int32_t(rank), args.scale_rows = int32_t(scales);
    args.loop_dim = int32_t(loop_dim), args.t = int32_t(t);
    args.threshold = float(threshold), args.eps = float(eps);
    return args;
}

void loop_step(const Tensor& h, const Tensor& e, const Tensor& block_out, const Tensor& h_out, const Tensor& cum_p,
               const Tensor& a, const Tensor& b, const Tensor& lora_down, const Tensor& lora_scale,
               const Tensor& lora_b, const Tensor& halt_w, const Tensor& halt_b, const std::optional<Tensor>& norm_w,
               int64_t t, const std::optional<Tensor>& t_rows, double threshold, double eps, int64_t loop_dim,
               const std::optional<Tensor>& x_next, const Tensor& h_new, const Tensor& h_out_new,
               const Tensor& cum_p_new) {
    const Checks check("loop_step", h);
    LoopStepArgs args = fill(check, h, e, block_out, h_out, cum_p, a, b, lora_down, lora_scale, lora_b, halt_w, halt_b,
                             norm_w, t, t_rows, threshold, eps, loop_dim, x_next);
    args.h_new = check.matrix(h_new, "h_new", args.n, args.d);
    check.same_type(h_new, "h_new", h, "h");
    args.h_out_new = check.matrix(h_out_new, "h_out_new", args.n, args.d);
    check.dtype(h_out_new, "h_out_new", {ScalarType::Float});
    args.cum_p_new = const_cast<float*>(check.floats(cum_p_new, "cum_p_new", {args.n}));
    if (!check.on_gpu()) return run_on_cpu<&cpu::Kernels::loop_step>(args);
    if (args.n == 0) return;
    const auto planned = runtime::plan(args, gpu_runtime().multiprocessors(check.device()));
    launch(check, planned.launch, &planned.args);
}

std::string loop_step_reason(const Tensor& h, const Tensor& e, const Tensor& block_out, const Tensor& h_out,
                             const Tensor& cum_p, const Tensor& a, const Tensor& b, const Tensor& lora_down,
                             const Tensor& lora_scale, const Tensor& lora_b, const Tensor& halt_w, const Tensor& halt_b,
                             const std::optional<Tensor>& norm_w, int64_t t, const std::optional<Tensor>& t_rows,
                             double threshold, double eps, int64_t loop_dim, const std::optional<Tensor>& x_next) {
    return reason_of([&] {
        const Checks check("loop_step", h, Mode::ask);
        fill(check, h, e, block_out, h_out, cum_p, a, b, lora_down, lora_scale, lora_b, halt_w, halt_b, norm_w, t,
             t_rows, threshold, eps, loop_dim, x_next);
        require_device(check);
    });
}

}  // namespace

OPENMYTHOS_REGISTER(loop_step,
                    "Tensor h, Tensor e, Tensor block_out, Tensor h_out, Tensor cum_p, Tensor A, Tensor B, "
                    "Tensor lora_down, Tensor lora_scale, Tensor lora_b, Tensor halt_w, Tensor halt_b, "
                    "Tensor? norm_w, int t, Tensor? t_rows, float threshold, float eps, int loop_dim, "
                    "Tensor(d!)? x_next",
                    "Tensor(a!) h_new, Tensor(b!) h_out_new, Tensor(c!) cum_p_new")

}  // namespace openmythos
