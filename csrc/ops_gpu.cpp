#include <dlfcn.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "checks.h"
#include "runtime/plans.h"
#include "runtime/stream.h"

// The same ops as in ops.cpp for the "cuda" device, which is what torch calls both vendors' GPUs. Arguments are checked
// without reading a value, since that would wait for the device.

// The tests run this file on tensors in the CPU's memory, before a driver that records.
#ifndef OPENMYTHOS_GPU_LIBRARY
#define OPENMYTHOS_GPU_LIBRARY openmythos_native
#define OPENMYTHOS_GPU_KEY CUDA
#define OPENMYTHOS_GPU_WHERE Where::gpu
#endif

namespace openmythos {

namespace {

// Beside this library, wherever it is.
std::string code_objects_folder() {
    Dl_info info{};
    dladdr(reinterpret_cast<const void*>(&code_objects_folder), &info);
    std::string path = info.dli_fname ? info.dli_fname : "";
    size_t slash = path.rfind('/');
    return (slash == std::string::npos ? "." : path.substr(0, slash)) + "/gpu";
}

runtime::Runtime& gpu_runtime() {
    static runtime::Runtime runtime(code_objects_folder());
    return runtime;
}

gpu::Type gpu_type(const Checks& check, const Tensor& x, const char* name) {
    check.dtype(x, name, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
    switch (x.scalar_type()) {
        case ScalarType::Float:
            return gpu::Type::float32;
        case ScalarType::BFloat16:
            return gpu::Type::bfloat16;
        default:
            return gpu::Type::float16;
    }
}

gpu::Rows rows(const Checks& check, const Tensor& x, const char* name, int64_t n, int64_t d) {
    check.shape(x, name, {n, d});
    return {x.data_ptr(), x.stride(0), gpu_type(check, x, name), 0};
}

void check_width(const Checks& check, int64_t n, int64_t d) {
    check.require(d >= 1 && d <= runtime::MAX_WIDTH, "the rows have ", d, " columns, expected 1 to ",
                  runtime::MAX_WIDTH);
    check.require(n < int64_t(1) << 31, "there are ", n, " rows, expected fewer than 2^31");
}

void launch(const Checks& check, const runtime::Launch& plan) {
    gpu_runtime().launch(plan, check.device(), runtime::current_stream(check.device()));
}

void rms_norm(const Tensor& x, const std::optional<Tensor>& residual, const Tensor& weight, double eps,
              const Tensor& out, const std::optional<Tensor>& sum) {
    Checks check("rms_norm", OPENMYTHOS_GPU_WHERE);
    gpu::RmsNormParams args{};
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
    gpu::LoopStepParams args{};
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

void moe_route(const Tensor& logits, const std::optional<Tensor>& bias, const Tensor& ids, const Tensor& weights,
               const Tensor& counts) {
    Checks check("moe_route", OPENMYTHOS_GPU_WHERE);
    gpu::MoeRouteParams args{};
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
    check.require(experts <= gpu::MOE_MAX_EXPERTS, "logits has ", experts, " columns, expected 1 to ",
                  gpu::MOE_MAX_EXPERTS);
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

void check_moe_width(const Checks& check, const char* name, const char* what, int64_t width) {
    check.require(width >= 1 && width <= runtime::MAX_MOE_WIDTH, name, " has ", width, " ", what, ", expected 1 to ",
                  runtime::MAX_MOE_WIDTH);
}

void moe_shared(const Checks& check, const Tensor& x, const std::vector<Tensor>& gate, const std::vector<Tensor>& up,
                const std::vector<Tensor>& down, gpu::MoeParams& args) {
    check.require(gate.size() == up.size() && gate.size() == down.size(),
                  "shared_gate, shared_up and shared_down have ", gate.size(), ", ", up.size(), " and ", down.size(),
                  " tensors, expected as many each");
    check.require(gate.size() <= gpu::MOE_MAX_SHARED, "there are ", gate.size(), " shared experts, expected at most ",
                  gpu::MOE_MAX_SHARED);
    int64_t column = 0;
    for (size_t s = 0; s < gate.size(); s++) {
        gpu::MoeShared& expert = args.shared[s];
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
void moe_grouped(const Checks& check, const gpu::MoeParams& moe, const Tensor& x) {
    gpu::MoeGroupedParams args{};
    args.moe = moe;
    check.dtype(x, "x", {ScalarType::BFloat16, ScalarType::Half});
    args.moe.aligned = runtime::is_aligned(moe);
    check.require(args.moe.aligned && runtime::is_aligned(moe.out), "there are ", moe.rows, " rows and ", moe.slots,
                  " choices of experts, expected at most ", gpu::MOE_MAX_ROWS, " and ", gpu::MOE_MAX_SLOTS,
                  " where sizes are no multiples of 8 or rows begin elsewhere than at 16 bytes");
    check.require(moe.experts <= gpu::MOE_MAX_EXPERTS, "gate_up has ", moe.experts, " experts, expected at most ",
                  gpu::MOE_MAX_EXPERTS, " for more than ", gpu::MOE_MAX_ROWS, " rows");
    const int64_t blocks = runtime::deal(args);
    check.require(blocks < runtime::MAX_THREADS / gpu::MOE_BLOCK_THREADS, "a launch would have ", blocks,
                  " blocks, expected fewer than 2^24");
    const auto scratch = torch::stable::new_empty(x.stable(), {runtime::scratch_bytes(args)}, ScalarType::Byte);
    const runtime::MoeGroupedPlan plan = runtime::plan(args, scratch.data_ptr(), gpu_runtime().is_cuda());
    for (const runtime::Launch& each : plan.launches)
        if (each.grid.x) launch(check, each);
}

void moe(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& gate_up, const Tensor& down,
         std::vector<Tensor> shared_gate, std::vector<Tensor> shared_up, std::vector<Tensor> shared_down,
         const Tensor& out) {
    Checks check(shared_gate.empty() ? "moe_experts" : "moe", OPENMYTHOS_GPU_WHERE);
    gpu::MoeParams args{};
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
    for (int axis = 0; axis < 3; axis++) args.gate_up_strides[axis] = gate_up.stride(axis);
    for (int axis = 0; axis < 2; axis++) args.down_strides[axis] = down.stride(axis);
    if (n == 0) return;
    if (n > gpu::MOE_MAX_ROWS || args.slots > gpu::MOE_MAX_SLOTS) return moe_grouped(check, args, x);
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

// A tensor whose rows begin at 16 bytes.
const void* aligned(const Checks& check, const Tensor& x, const char* name, std::initializer_list<int64_t> sizes,
                    const Tensor& like) {
    check.shape(x, name, sizes);
    check.same_type(x, name, like, "q_nope");
    bool ok = runtime::is_aligned(x.data_ptr());
    for (int64_t axis = 0; axis + 1 < x.dim(); axis++)
        ok = ok && (x.size(axis) <= 1 || x.stride(axis) * (like.scalar_type() == ScalarType::Float ? 4 : 2) % 16 == 0);
    check.require(ok || x.numel() == 0, name,
                  " has rows that begin elsewhere, expected every one to begin at 16 bytes");
    return x.data_ptr();
}

// Integers on the device; `wide` tells whether they have 64 bits.
const void* indices(const Checks& check, const Tensor& x, const char* name, std::initializer_list<int64_t> sizes,
                    int32_t& wide) {
    check.shape(x, name, sizes);
    check.dtype(x, name, {ScalarType::Int, ScalarType::Long});
    wide = x.scalar_type() == ScalarType::Long;
    return x.data_ptr();
}

void check_widths(const Checks& check, const gpu::MlaParams& p) {
    std::string pairs;
    for (const auto& [dc, dr] : runtime::MLA_WIDTHS) {
        if (dc == p.dc && dr == p.dr) return;
        pairs += (pairs.empty() ? "" : " or ") + std::to_string(dc) + " and " + std::to_string(dr);
    }
    check.require(false, "latent and k_rope have ", p.dc, " and ", p.dr, " columns, expected ", pairs);
}

void check_heads(const Checks& check, const gpu::MlaParams& p) {
    std::string sizes;
    for (const auto& [dn, dr, dv] : runtime::MLA_HEADS) {
        if (dn == p.dn && dr == p.dr && dv == p.dv) return;
        sizes += (sizes.empty() ? "" : " or ") + std::to_string(dn) + ", " + std::to_string(dr) + " and " +
                 std::to_string(dv);
    }
    check.require(false, "q_nope, q_rope and w_uv have heads of ", p.dn, ", ", p.dr, " and ", p.dv,
                  " numbers, expected ", sizes, " where absorbed is False");
}

// Keys, and values transposed, so that both products of the attention find their contraction innermost. The heads are
// independent of each other, and as many as fit the memory meant for them are served at a time.
void mla_prefill(const Checks& check, const gpu::MlaParams& p, gpu::Type type, const torch::stable::Tensor& like,
                 torch::stable::Tensor latent, torch::stable::Tensor w_uk, torch::stable::Tensor w_uv) {
    gpu::MlaPrefillParams args = runtime::prefill_params(p);
    if (p.page || p.seq_lens || args.padded != p.total) {
        latent = torch::stable::new_empty(like, {p.b, args.padded, p.dc + p.dr});
        args.gathered = latent.data_ptr();
        if (latent.numel()) launch(check, runtime::gather_plan(args));
        args.k_rope = static_cast<const uint16_t*>(args.gathered) + p.dc;
        args.k_rope_b = latent.stride(0), args.k_rope_s = latent.stride(1);
        latent = torch::stable::narrow(latent, 2, 0, p.dc);
    }
    const int64_t most = runtime::heads_at_a_time(args);
    for (int64_t head = 0; head < p.h; head += most) {
        const int64_t heads = std::min(most, p.h - head);
        const auto rows = [&](torch::stable::Tensor& w) {
            return torch::stable::unsqueeze(torch::stable::flatten(torch::stable::narrow(w, 0, head, heads), 0, 1), 0);
        };
        const auto keys = torch::stable::matmul(latent, torch::stable::transpose(rows(w_uk), 1, 2));
        const auto values = torch::stable::matmul(rows(w_uv), torch::stable::transpose(latent, 1, 2));
        gpu::MlaPrefillParams part = args;
        const auto from = [&](const void* tensor, int64_t stride) {
            return static_cast<const uint16_t*>(tensor) + head * stride;
        };
        part.keys = keys.data_ptr(), part.values = values.data_ptr(), part.h = int32_t(heads);
        part.q_nope = from(p.q_nope, p.q_nope_h), part.q_rope = from(p.q_rope, p.q_rope_h);
        part.out = static_cast<uint16_t*>(p.out) + head * p.out_h;
        if (p.lse) part.lse = p.lse + head * p.t;
        launch(check, runtime::plan(part, type, gpu_runtime().is_cuda()));
    }
}

void mla_attention(const Tensor& q_nope, const Tensor& q_rope, const Tensor& latent, const Tensor& k_rope,
                   const Tensor& w_uk, const Tensor& w_uv, double scale, bool causal,
                   const std::optional<Tensor>& seq_lens, const std::optional<Tensor>& block_table, bool absorbed,
                   const Tensor& out, const std::optional<Tensor>& lse) {
    Checks check("mla_attention", OPENMYTHOS_GPU_WHERE);
    gpu::MlaParams args{};
    const gpu::Type type = gpu_type(check, q_nope, "q_nope");
    check.shape(q_nope, "q_nope", {-1, -1, -1, -1});
    const int64_t b = q_nope.size(0), t = q_nope.size(1), h = q_nope.size(2), dn = q_nope.size(3);
    constexpr int64_t MOST = int64_t(1) << 31;
    if (absorbed)
        check.require(t <= runtime::MLA_MAX_NEW, "q_nope has ", t, " tokens, expected at most ", runtime::MLA_MAX_NEW,
                      " where absorbed is True");
    else
        check.dtype(q_nope, "q_nope", {ScalarType::BFloat16, ScalarType::Half});
    check.require(h < 65536, "q_nope has ", h, " heads, expected fewer than 65536");
    check.require(b < MOST && b * t * h < MOST, "q_nope has ", b, " sequences of ", t, " tokens and ", h,
                  " heads, expected a product below 2^31");
    check.shape(q_rope, "q_rope", {b, t, h, -1});
    check.same_type(q_rope, "q_rope", q_nope, "q_nope");
    const int64_t dr = q_rope.size(3), sequences = block_table ? -1 : b;
    args.latent = aligned(check, latent, "latent", {sequences, -1, -1}, q_nope);
    const int64_t s = latent.size(1), dc = latent.size(2);
    args.k_rope = aligned(check, k_rope, "k_rope", {latent.size(0), s, dr}, q_nope);
    args.w_uk = aligned(check, w_uk, "w_uk", {h, dn, dc}, q_nope);
    args.w_uv = aligned(check, w_uv, "w_uv", {h, -1, dc}, q_nope);
    const int64_t dv = w_uv.size(1);
    for (auto [size, name] : {std::pair{dn, "w_uk"}, std::pair{dv, "w_uv"}})
        check.require(size <= runtime::MLA_MAX_HEAD, name, " has ", size, " rows a head, expected at most ",
                      runtime::MLA_MAX_HEAD);
    check.shape(out, "out", {b, t, h, dv});
    check.same_type(out, "out", q_nope, "q_nope");
    if (lse) args.lse = const_cast<float*>(check.floats(*lse, "lse", {b, h, t}));
    if (seq_lens) args.seq_lens = indices(check, *seq_lens, "seq_lens", {b}, args.wide_lens);
    int64_t total = s;
    if (block_table) {
        check.require(seq_lens.has_value(), "seq_lens is None, expected a tensor because block_table is given");
        args.block_table = indices(check, *block_table, "block_table", {b, -1}, args.wide_table);
        check.require(s >= 1, "latent has pages of 0 keys, expected 1 or more");
        args.table_b = block_table->stride(0), args.page = int32_t(s), total = s * block_table->size(1);
    }
    check.require(total < MOST - 1024, "there are ", total, " keys, expected fewer than 2^31 - 1024");
    args.b = int32_t(b), args.t = int32_t(t), args.h = int32_t(h), args.dn = int32_t(dn), args.dr = int32_t(dr);
    args.dc = int32_t(dc), args.dv = int32_t(dv), args.total = int32_t(total), args.causal = causal;
    if (absorbed) {
        check_widths(check, args);
    } else {
        check_heads(check, args);
        check.require(dc % runtime::VEC == 0, "latent has ", dc, " columns, expected a multiple of ", runtime::VEC);
        check.require(b * (total + runtime::MLA_WHOLE_KEYS) < MOST, "there are ", b, " sequences of ", total,
                      " keys, expected a product below 2^31");
        aligned(check, q_nope, "q_nope", {b, t, h, dn}, q_nope);
        aligned(check, q_rope, "q_rope", {b, t, h, dr}, q_nope);
        aligned(check, out, "out", {b, t, h, dv}, q_nope);
    }
    args.q_nope = q_nope.data_ptr(), args.q_rope = q_rope.data_ptr(), args.out = out.data_ptr();
    args.q_nope_b = q_nope.stride(0), args.q_nope_t = q_nope.stride(1), args.q_nope_h = q_nope.stride(2);
    args.q_rope_b = q_rope.stride(0), args.q_rope_t = q_rope.stride(1), args.q_rope_h = q_rope.stride(2);
    args.latent_b = latent.stride(0), args.latent_s = latent.stride(1);
    args.k_rope_b = k_rope.stride(0), args.k_rope_s = k_rope.stride(1);
    args.w_uk_h = w_uk.stride(0), args.w_uk_n = w_uk.stride(1), args.w_uv_h = w_uv.stride(0);
    args.w_uv_v = w_uv.stride(1), args.out_b = out.stride(0), args.out_t = out.stride(1), args.out_h = out.stride(2);
    args.scale = float(scale * 1.4426950408889634);
    if (b * t * h == 0) return;
    if (!absorbed) {
        mla_prefill(check, args, type, q_nope.stable(), latent.stable(), w_uk.stable(), w_uv.stable());
        return;
    }
    const int64_t bytes = runtime::scratch_bytes(args, type, gpu_runtime().multiprocessors(check.device()));
    const auto scratch = torch::stable::new_empty(q_nope.stable(), {bytes}, ScalarType::Byte);
    const runtime::MlaPlan plan = runtime::plan(args, type, scratch.data_ptr());
    for (const runtime::Launch* each : {&plan.fold, &plan.shares, &plan.combine}) launch(check, *each);
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

}  // namespace openmythos
