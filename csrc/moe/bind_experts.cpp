#include "../core/register.h"
#include "plan.h"

// Routed and shared experts: calls of few rows stream the weights, calls of many rows sort them and multiply in blocks.

namespace openmythos {

namespace {

using Tensors = std::vector<Tensor>;

void check_width(const Checks& check, const char* name, const char* what, int64_t width) {
    const int64_t max = check.on_gpu() ? runtime::MAX_MOE_WIDTH : (int64_t(1) << 31) - 1;
    check.require(width >= (check.on_gpu() ? 1 : 0) && width <= max, name, " has ", width, " ", what,
                  ", expected 1 to ", max);
}

void fill_shared(const Checks& check, const Tensor& x, const Tensors& gate, const Tensors& up, const Tensors& down,
                 MoeExpertsArgs& args) {
    check.require(gate.size() == up.size() && gate.size() == down.size(),
                  "shared_gate, shared_up and shared_down have ", gate.size(), ", ", up.size(), " and ", down.size(),
                  " tensors, expected the same number");
    check.require(gate.size() <= MOE_MAX_SHARED, "there are ", gate.size(), " shared experts, expected at most ",
                  MOE_MAX_SHARED);
    int64_t column = 0;
    for (size_t s = 0; s < gate.size(); s++) {
        MoeShared& expert = args.shared[s];
        check.shape(gate[s], "shared_gate", {-1, args.d});
        const int64_t width = gate[s].size(0);
        check.shape(up[s], "shared_up", {width, args.d});
        check.shape(down[s], "shared_down", {args.d, width});
        check_width(check, "shared_gate", "rows", width);
        check.require(check.on_gpu() || (args.width > 0 && width % args.width == 0), "shared_gate has ", width,
                      " rows, expected a multiple of the experts' ", args.width);
        check.same_type(gate[s], "shared_gate", x, "x");
        check.same_type(up[s], "shared_up", x, "x");
        check.same_type(down[s], "shared_down", x, "x");
        expert.gate = gate[s].data_ptr(), expert.up = up[s].data_ptr(), expert.down = down[s].data_ptr();
        expert.gate_stride = gate[s].stride(0), expert.up_stride = up[s].stride(0);
        expert.down_stride = down[s].stride(0);
        expert.width = int32_t(width), expert.column = int32_t(column);
        column += width;
    }
    check.require(column < int64_t(1) << 31, "the shared experts have ", column,
                  " hidden units, expected fewer than 2^31");
    args.shared_count = int32_t(gate.size()), args.shared_width = int32_t(column);
}

// On a GPU reading the ids would synchronise with the host; there the kernels make the row of a wrong id NaN.
void check_ids(const Checks& check, const MoeExpertsArgs& args) {
    for (int64_t n = 0; n < args.rows; n++) {
        for (int64_t j = 0; j < args.k; j++) {
            const int64_t id = expert_id(args, n, j);
            check.require(id >= 0 && id < args.experts, "ids[", n, ", ", j, "] is ", id, ", expected 0 to ",
                          args.experts - 1);
        }
    }
}

bool streams(const MoeExpertsArgs& args) { return args.rows <= MOE_MAX_ROWS && args.slots <= MOE_MAX_SLOTS; }

// Requirements of the grouped kernels.
void check_grouped(const Checks& check, const MoeExpertsArgs& args) {
    const auto many = [&] {
        return std::to_string(args.rows) + " rows with " + std::to_string(args.k) + " choices of experts each";
    };
    if (args.x.type == Type::float32)
        check.require(false, many(), " in float32, which has no matrix instructions: expected at most ", MOE_MAX_ROWS,
                      " rows");
    if (!runtime::is_aligned(args))
        check.require(false, many(), ": the sizes must be multiples of 8 and rows of x, gate_up, down and the shared ",
                      "experts 16-byte aligned");
    if (args.experts > MOE_MAX_EXPERTS)
        check.require(false, many(), " and ", args.experts, " experts, expected at most ", MOE_MAX_EXPERTS);
    if (runtime::grouped_plan(args, gpu_runtime().tiles()).max_blocks >= runtime::MAX_THREADS / MOE_BLOCK_THREADS)
        check.require(false, many(), ": one launch takes fewer than 2^24 blocks");
}

MoeExpertsArgs fill(const Checks& check, const Tensor& x, const Tensor& ids, const Tensor& weights,
                    const Tensor& gate_up, const Tensor& down, const Tensors& shared_gate, const Tensors& shared_up,
                    const Tensors& shared_down) {
    MoeExpertsArgs args{};
    args.x = check.matrix(x, "x", -1, -1);
    const int64_t n = x.size(0), d = x.size(1);
    int32_t wide = 0;
    args.ids = check.indices(ids, "ids", {n, -1}, wide);
    args.ids_bytes = wide ? 8 : 4, args.ids_stride = ids.stride(0);
    const int64_t k = ids.size(1);
    check.shape(weights, "weights", {n, k});
    check.dtype(weights, "weights", {ScalarType::Float});
    args.weights = static_cast<const float*>(weights.data_ptr()), args.weights_stride = weights.stride(0);
    check.shape(gate_up, "gate_up", {-1, 2, -1, d});
    const int64_t experts = gate_up.size(0), width = gate_up.size(2);
    check.shape(down, "down", {experts, d, width});
    check.same_type(gate_up, "gate_up", x, "x");
    check.same_type(down, "down", x, "x");
    check.require(n + n * k < int64_t(1) << 31, "x has ", n, " rows with ", k,
                  " experts each, expected fewer than 2^31 in all");
    check_width(check, "x", "columns", d);
    check_width(check, "gate_up", "hidden units an expert", width);
    check.require(experts < int64_t(1) << 31, "gate_up has ", experts, " experts, expected fewer than 2^31");
    args.rows = int32_t(n), args.k = int32_t(k), args.slots = int32_t(n * k), args.experts = int32_t(experts);
    args.d = int32_t(d), args.width = int32_t(width);
    args.gate_up = gate_up.data_ptr(), args.down = down.data_ptr();
    // The strides of a single expert or row may be anything.
    const auto stride = [](const Tensor& of, int axis) { return of.size(axis) > 1 ? of.stride(axis) : 0; };
    for (int axis = 0; axis < 3; axis++) args.gate_up_strides[axis] = stride(gate_up, axis);
    for (int axis = 0; axis < 2; axis++) args.down_strides[axis] = stride(down, axis);
    fill_shared(check, x, shared_gate, shared_up, shared_down, args);
    if (check.on_gpu() && !streams(args)) check_grouped(check, args);
    return args;
}

void launch_grouped(const Checks& check, const MoeExpertsArgs& args, const Tensor& x) {
    runtime::MoeGroupedPlan plan = runtime::grouped_plan(args, gpu_runtime().tiles());
    const auto scratch = torch::stable::new_empty(x.stable(), {plan.scratch_bytes}, ScalarType::Byte);
    plan.set_scratch(scratch.data_ptr());
    for (const runtime::Launch& each : plan.launches)
        if (each.grid.x) launch(check, each, &plan.args);
}

void launch_streamed(const Checks& check, const MoeExpertsArgs& args, const Tensor& x) {
    runtime::MoeStreamedPlan plan = runtime::streamed_plan(args);
    // Freed on return: torch reuses the memory only for work that follows on the same stream.
    const auto act = torch::stable::new_empty(x.stable(), {plan.act_elements()});
    plan.args.act = act.data_ptr();
    if (plan.up.grid.x) launch(check, plan.up, &plan.args);
    launch(check, plan.down, &plan.args);
}

void moe_experts(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& gate_up, const Tensor& down,
                 Tensors shared_gate, Tensors shared_up, Tensors shared_down, const Tensor& out) {
    const Checks check("moe_experts", x);
    MoeExpertsArgs args = fill(check, x, ids, weights, gate_up, down, shared_gate, shared_up, shared_down);
    args.out = check.matrix(out, "out", args.rows, args.d);
    check.same_type(out, "out", x, "x");
    if (!check.on_gpu()) {
        check_ids(check, args);
        return run_on_cpu<&cpu::Kernels::moe_experts>(args);
    }
    if (args.rows == 0) return;
    if (streams(args)) return launch_streamed(check, args, x);
    check.aligned(out, "out");
    launch_grouped(check, args, x);
}

std::string moe_experts_reason(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& gate_up,
                               const Tensor& down, Tensors shared_gate, Tensors shared_up, Tensors shared_down) {
    return reason_of([&] {
        const Checks check("moe_experts", x, Mode::ask);
        fill(check, x, ids, weights, gate_up, down, shared_gate, shared_up, shared_down);
        require_device(check);
    });
}

}  // namespace

OPENMYTHOS_REGISTER(moe_experts,
                    "Tensor x, Tensor ids, Tensor weights, Tensor gate_up, Tensor down, Tensor[] shared_gate, "
                    "Tensor[] shared_up, Tensor[] shared_down",
                    "Tensor(a!) out")

}  // namespace openmythos
