#include "ops_gpu.h"

// The experts: few rows stream their weights, many are sorted and multiplied in blocks.

namespace openmythos::on_gpu {

void moe_route(const Tensor& logits, const std::optional<Tensor>& bias, const Tensor& ids, const Tensor& weights,
               const Tensor& counts) {
    Checks check("moe_route", OPENMYTHOS_GPU_WHERE);
    MoeRouteArgs args{};
    args.logits = rows(check, logits, "logits", -1, -1);
    int64_t n = logits.size(0), experts = logits.size(1);
    if (bias) args.bias = check.floats(*bias, "bias", {experts});
    check.shape(ids, "ids", {n, -1});
    check.dtype(ids, "ids", {ScalarType::Int});
    int64_t k = ids.size(1);
    check.shape(weights, "weights", {n, k});
    check.dtype(weights, "weights", {ScalarType::Float});
    check.shape(counts, "counts", {experts});
    check.dtype(counts, "counts", {ScalarType::Int});
    check.require(experts <= MOE_MAX_EXPERTS, "logits has ", experts, " columns, expected 1 to ",
                  MOE_MAX_EXPERTS);
    check.require(k >= 1 && k <= experts, "ids.size(1) is ", k, ", expected 1 to ", experts, ", the number of experts");
    check.require(n < runtime::MAX_THREADS / 32, "there are ", n, " rows, expected fewer than 2^27");
    args.ids = static_cast<int32_t*>(ids.data_ptr()), args.ids_stride = ids.stride(0);
    args.weights = static_cast<float*>(weights.data_ptr()), args.weights_stride = weights.stride(0);
    args.counts = static_cast<int32_t*>(counts.data_ptr());
    args.rows = int32_t(n), args.experts = int32_t(experts), args.k = int32_t(k);
    const runtime::Launch plan = runtime::plan(args);
    if (args.add_counts) {
        torch::stable::Tensor zeros = counts.stable();
        torch::stable::zero_(zeros);
    }
    launch(check, plan);
}

namespace {

void check_moe_width(const Checks& check, const char* name, const char* what, int64_t width) {
    check.require(width >= 1 && width <= runtime::MAX_MOE_WIDTH, name, " has ", width, " ", what, ", expected 1 to ",
                  runtime::MAX_MOE_WIDTH);
}

void moe_shared(const Checks& check, const Tensor& x, const std::vector<Tensor>& gate, const std::vector<Tensor>& up,
                const std::vector<Tensor>& down, MoeExpertsArgs& args) {
    check.require(gate.size() == up.size() && gate.size() == down.size(),
                  "shared_gate, shared_up and shared_down have ", gate.size(), ", ", up.size(), " and ", down.size(),
                  " tensors, expected as many each");
    check.require(gate.size() <= MOE_MAX_SHARED, "there are ", gate.size(), " shared experts, expected at most ",
                  MOE_MAX_SHARED);
    int64_t column = 0;
    for (size_t s = 0; s < gate.size(); s++) {
        MoeShared& expert = args.shared[s];
        check.shape(gate[s], "shared_gate", {-1, args.d});
        int64_t width = gate[s].size(0);
        check.shape(up[s], "shared_up", {width, args.d});
        check.shape(down[s], "shared_down", {args.d, width});
        check_moe_width(check, "shared_gate", "rows", width);
        check.same_type(gate[s], "shared_gate", x, "x");
        check.same_type(up[s], "shared_up", x, "x");
        check.same_type(down[s], "shared_down", x, "x");
        expert.gate = gate[s].data_ptr(), expert.up = up[s].data_ptr(), expert.down = down[s].data_ptr();
        expert.gate_stride = gate[s].stride(0), expert.up_stride = up[s].stride(0);
        expert.down_stride = down[s].stride(0);
        expert.width = int32_t(width), expert.column = int32_t(column);
        column += width;
    }
    args.shared_count = int32_t(gate.size()), args.shared_width = int32_t(column);
}

// More rows, or more choices, than the kernels that stream the weights take.
void moe_grouped(const Checks& check, const MoeExpertsArgs& moe, const Tensor& x) {
    MoeGroupedArgs args{};
    args.moe = moe;
    check.dtype(x, "x", {ScalarType::BFloat16, ScalarType::Half});
    args.moe.aligned = runtime::is_aligned(moe);
    check.require(args.moe.aligned && runtime::is_aligned(moe.out), "there are ", moe.rows, " rows and ", moe.slots,
                  " choices of experts, expected at most ", MOE_MAX_ROWS, " and ", MOE_MAX_SLOTS,
                  " where sizes are no multiples of 8 or rows begin elsewhere than at 16 bytes");
    check.require(moe.experts <= MOE_MAX_EXPERTS, "gate_up has ", moe.experts, " experts, expected at most ",
                  MOE_MAX_EXPERTS, " for more than ", MOE_MAX_ROWS, " rows");
    const int64_t blocks = runtime::deal(args);
    check.require(blocks < runtime::MAX_THREADS / MOE_BLOCK_THREADS, "a launch would have ", blocks,
                  " blocks, expected fewer than 2^24");
    const auto scratch = torch::stable::new_empty(x.stable(), {runtime::scratch_bytes(args)}, ScalarType::Byte);
    const runtime::MoeGroupedPlan plan = runtime::plan(args, scratch.data_ptr(), gpu_runtime().tiles());
    for (const runtime::Launch& each : plan.launches)
        if (each.grid.x) launch(check, each);
}

}  // namespace

void moe(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& gate_up, const Tensor& down,
         std::vector<Tensor> shared_gate, std::vector<Tensor> shared_up, std::vector<Tensor> shared_down,
         const Tensor& out) {
    Checks check(shared_gate.empty() ? "moe_experts" : "moe", OPENMYTHOS_GPU_WHERE);
    MoeExpertsArgs args{};
    args.x = rows(check, x, "x", -1, -1);
    int64_t n = x.size(0), d = x.size(1);
    check.shape(ids, "ids", {n, -1});
    check.dtype(ids, "ids", {ScalarType::Int, ScalarType::Long});
    int64_t k = ids.size(1);
    check.shape(weights, "weights", {n, k});
    check.dtype(weights, "weights", {ScalarType::Float});
    check.shape(gate_up, "gate_up", {-1, 2, -1, d});
    int64_t experts = gate_up.size(0), width = gate_up.size(2);
    check.shape(down, "down", {experts, d, width});
    args.out = rows(check, out, "out", n, d);
    check.same_type(gate_up, "gate_up", x, "x");
    check.same_type(down, "down", x, "x");
    check.same_type(out, "out", x, "x");
    check.require(n + n * k < int64_t(1) << 31, "there are ", n, " rows with ", k,
                  " experts each, expected fewer than 2^31 in all");
    check_moe_width(check, "x", "columns", d);
    check_moe_width(check, "gate_up", "hidden units an expert", width);
    check.require(experts < int64_t(1) << 31, "gate_up has ", experts, " experts, expected fewer than 2^31");
    args.rows = int32_t(n), args.k = int32_t(k), args.slots = int32_t(n * k), args.experts = int32_t(experts);
    args.d = int32_t(d), args.width = int32_t(width);
    moe_shared(check, x, shared_gate, shared_up, shared_down, args);
    args.ids = ids.data_ptr(), args.ids_bytes = ids.scalar_type() == ScalarType::Int ? 4 : 8;
    args.ids_stride = ids.stride(0);
    args.weights = static_cast<const float*>(weights.data_ptr()), args.weights_stride = weights.stride(0);
    args.gate_up = gate_up.data_ptr(), args.down = down.data_ptr();
    // The strides of a single expert or row may be anything.
    const auto stride = [](const Tensor& of, int axis) { return of.size(axis) > 1 ? of.stride(axis) : 0; };
    for (int axis = 0; axis < 3; axis++) args.gate_up_strides[axis] = stride(gate_up, axis);
    for (int axis = 0; axis < 2; axis++) args.down_strides[axis] = stride(down, axis);
    if (n == 0) return;
    if (n > MOE_MAX_ROWS || args.slots > MOE_MAX_SLOTS) return moe_grouped(check, args, x);
    // Freed when this returns: torch hands the memory out again to work on the same stream only.
    const auto act = torch::stable::new_empty(x.stable(), {args.slots * width + n * args.shared_width});
    args.act = act.data_ptr();
    const runtime::MoePlan plan = runtime::plan(args);
    if (plan.up.grid.x) launch(check, plan.up);
    launch(check, plan.down);
}

void moe_experts(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& gate_up, const Tensor& down,
                 const Tensor& out) {
    moe(x, ids, weights, gate_up, down, {}, {}, {}, out);
}

}  // namespace openmythos::on_gpu
