#include <vector>

#include "checks.h"
#include "cpu/threads.h"

namespace openmythos {

namespace {

const cpu::Kernels& kernels() { return *cpu::current_variant().kernels; }

void linear(const Tensor& x, const Tensor& weight, const Tensor& out) {
    Checks check("linear");
    cpu::LinearArgs args{};
    args.x = check.matrix(x, "x", -1, -1);
    args.n = x.size(0), args.k = x.size(1);
    args.weight = check.matrix(weight, "weight", -1, args.k);
    args.o = weight.size(0);
    args.out = check.matrix(out, "out", args.n, args.o);
    check.same_type(weight, "weight", x, "x");
    check.same_type(out, "out", x, "x");
    cpu::Workspace workspace;
    kernels().linear(workspace.threads, args);
}

void swiglu(const Tensor& x, const Tensor& gate, const Tensor& up, const Tensor& down, const Tensor& out) {
    Checks check("swiglu");
    cpu::SwigluArgs args{};
    args.x = check.matrix(x, "x", -1, -1);
    args.n = x.size(0), args.d = x.size(1);
    args.gate = check.matrix(gate, "gate", -1, args.d);
    args.i = gate.size(0);
    args.up = check.matrix(up, "up", args.i, args.d);
    args.down = check.matrix(down, "down", -1, args.i);
    args.o = down.size(0);
    args.out = check.matrix(out, "out", args.n, args.o);
    check.same_type(gate, "gate", x, "x");
    check.same_type(up, "up", x, "x");
    check.same_type(down, "down", x, "x");
    check.same_type(out, "out", x, "x");
    cpu::Workspace workspace;
    kernels().swiglu(workspace.threads, args);
}

void rms_norm(const Tensor& x, const std::optional<Tensor>& residual, const Tensor& weight, double eps,
              const Tensor& out, const std::optional<Tensor>& sum) {
    Checks check("rms_norm");
    cpu::RmsNormArgs args{};
    args.x = check.matrix(x, "x", -1, -1);
    args.n = x.size(0), args.d = x.size(1);
    if (residual) args.residual = check.matrix(*residual, "residual", args.n, args.d);
    check.shape(weight, "weight", {args.d});
    args.weight = {weight.data_ptr(), 0, check.kernel_type(weight, "weight")};
    args.out = check.matrix(out, "out", args.n, args.d);
    if (sum) args.sum = check.matrix(*sum, "sum", args.n, args.d);
    args.eps = float(eps);
    cpu::Workspace workspace;
    kernels().rms_norm(workspace.threads, args);
}

void moe_route(const Tensor& logits, const std::optional<Tensor>& bias, const Tensor& ids, const Tensor& weights,
               const Tensor& counts) {
    Checks check("moe_route");
    cpu::MoeRouteArgs args{};
    args.logits = check.matrix(logits, "logits", -1, -1);
    args.n = logits.size(0), args.experts = logits.size(1);
    if (bias) args.bias = check.floats(*bias, "bias", {args.experts});
    check.shape(ids, "ids", {args.n, -1});
    args.k = ids.size(1);
    check.dtype(ids, "ids", {ScalarType::Int});
    check.require(args.k >= 1 && args.k <= args.experts, "ids.size(1) is ", args.k, ", expected 1 to ", args.experts,
                  ", the number of experts");
    check.shape(weights, "weights", {args.n, args.k});
    check.dtype(weights, "weights", {ScalarType::Float});
    check.shape(counts, "counts", {args.experts});
    check.dtype(counts, "counts", {ScalarType::Int});
    args.ids = static_cast<int32_t*>(ids.data_ptr()), args.ids_stride = ids.stride(0);
    args.weights = static_cast<float*>(weights.data_ptr()), args.weights_stride = weights.stride(0);
    args.counts = static_cast<int32_t*>(counts.data_ptr());
    cpu::Workspace workspace;
    kernels().moe_route(workspace.threads, args);
}

// The shared experts, cut into slices as wide as a routed expert.
std::vector<cpu::SharedSlice> shared_slices(const Checks& check, const Tensor& x, int64_t d, int64_t width,
                                            const std::vector<Tensor>& gate, const std::vector<Tensor>& up,
                                            const std::vector<Tensor>& down) {
    check.require(gate.size() == up.size() && gate.size() == down.size(),
                  "shared_gate, shared_up and shared_down have ", gate.size(), ", ", up.size(), " and ", down.size(),
                  " tensors, expected as many each");
    std::vector<cpu::SharedSlice> slices;
    for (size_t s = 0; s < gate.size(); s++) {
        cpu::SharedSlice whole{check.matrix(gate[s], "shared_gate", -1, d), {}, {}};
        int64_t wide = gate[s].size(0);
        whole.up = check.matrix(up[s], "shared_up", wide, d);
        whole.down = check.matrix(down[s], "shared_down", d, wide);
        check.require(width > 0 && wide % width == 0, "shared_gate has ", wide,
                      " rows, expected a multiple of the experts' ", width);
        for (const Tensor* each : {&gate[s], &up[s], &down[s]}) check.same_type(*each, "shared", x, "x");
        int64_t size = whole.gate.type == cpu::Type::float32 ? 4 : 2;
        for (int64_t row = 0; row < wide; row += width) {
            cpu::SharedSlice slice = whole;
            slice.gate.data = static_cast<char*>(whole.gate.data) + row * whole.gate.stride * size;
            slice.up.data = static_cast<char*>(whole.up.data) + row * whole.up.stride * size;
            slice.down.data = static_cast<char*>(whole.down.data) + row * size;
            slices.push_back(slice);
        }
    }
    return slices;
}

void moe(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& gate_up, const Tensor& down,
         std::vector<Tensor> shared_gate, std::vector<Tensor> shared_up, std::vector<Tensor> shared_down,
         const Tensor& out) {
    Checks check(shared_gate.empty() ? "moe_experts" : "moe");
    cpu::MoeExpertsArgs args{};
    args.x = check.matrix(x, "x", -1, -1);
    args.n = x.size(0), args.d = x.size(1);
    check.shape(ids, "ids", {args.n, -1});
    check.dtype(ids, "ids", {ScalarType::Int});
    args.k = ids.size(1);
    check.shape(weights, "weights", {args.n, args.k});
    check.dtype(weights, "weights", {ScalarType::Float});
    check.shape(gate_up, "gate_up", {-1, 2, -1, args.d});
    args.experts = gate_up.size(0), args.i = gate_up.size(2);
    check.shape(down, "down", {args.experts, args.d, args.i});
    args.out = check.matrix(out, "out", args.n, args.d);
    check.same_type(gate_up, "gate_up", x, "x");
    check.same_type(down, "down", x, "x");
    check.same_type(out, "out", x, "x");
    args.ids = static_cast<const int32_t*>(ids.data_ptr()), args.ids_stride = ids.stride(0);
    args.weights = static_cast<const float*>(weights.data_ptr()), args.weights_stride = weights.stride(0);
    args.gate_up = gate_up.data_ptr(), args.down = down.data_ptr();
    for (int axis = 0; axis < 3; axis++) args.gate_up_strides[axis] = gate_up.stride(axis);
    for (int axis = 0; axis < 2; axis++) args.down_strides[axis] = down.stride(axis);
    for (int64_t n = 0; n < args.n; n++) {
        for (int64_t j = 0; j < args.k; j++) {
            int64_t id = args.ids[n * args.ids_stride + j];
            check.require(id >= 0 && id < args.experts, "ids[", n, ", ", j, "] is ", id, ", expected 0 to ",
                          args.experts - 1);
        }
    }
    auto shared = shared_slices(check, x, args.d, args.i, shared_gate, shared_up, shared_down);
    args.shared = shared.data(), args.shared_count = int64_t(shared.size());
    cpu::Workspace workspace;
    kernels().moe_experts(workspace.threads, args);
}

void moe_experts(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& gate_up, const Tensor& down,
                 const Tensor& out) {
    moe(x, ids, weights, gate_up, down, {}, {}, {}, out);
}

void mla_attention(const Tensor& q_nope, const Tensor& q_rope, const Tensor& latent, const Tensor& k_rope,
                   const Tensor& w_uk, const Tensor& w_uv, double scale, bool causal,
                   const std::optional<Tensor>& seq_lens, const std::optional<Tensor>& block_table, bool absorbed,
                   const Tensor& out, const std::optional<Tensor>& lse) {
    Checks check("mla_attention");
    check.require(!block_table, "block_table is given, expected None: the CPU kernel has no paged cache");
    cpu::MlaArgs args{};
    args.type = check.kernel_type(q_nope, "q_nope");
    args.q_nope = check.tensor(q_nope, "q_nope", {-1, -1, -1, -1}, q_nope, "q_nope");
    args.b = q_nope.size(0), args.t = q_nope.size(1), args.h = q_nope.size(2), args.dn = q_nope.size(3);
    args.q_rope = check.tensor(q_rope, "q_rope", {args.b, args.t, args.h, -1}, q_nope, "q_nope");
    args.dr = q_rope.size(3);
    args.latent = check.tensor(latent, "latent", {args.b, -1, -1}, q_nope, "q_nope");
    args.s = latent.size(1), args.dc = latent.size(2);
    args.k_rope = check.tensor(k_rope, "k_rope", {args.b, args.s, args.dr}, q_nope, "q_nope");
    args.w_uk = check.tensor(w_uk, "w_uk", {args.h, args.dn, args.dc}, q_nope, "q_nope");
    args.w_uv = check.tensor(w_uv, "w_uv", {args.h, -1, args.dc}, q_nope, "q_nope");
    args.dv = w_uv.size(1);
    args.out = check.tensor(out, "out", {args.b, args.t, args.h, args.dv}, q_nope, "q_nope");
    if (lse) {
        check.shape(*lse, "lse", {args.b, args.h, args.t});
        check.dtype(*lse, "lse", {ScalarType::Float});
        args.lse = static_cast<float*>(lse->data_ptr());
        for (int axis = 0; axis < 3; axis++) args.lse_strides[axis] = lse->stride(axis);
    }
    std::vector<int64_t> lengths(args.b, args.s);
    if (seq_lens) {
        check.shape(*seq_lens, "seq_lens", {args.b});
        check.dtype(*seq_lens, "seq_lens", {ScalarType::Int, ScalarType::Long});
        for (int64_t b = 0; b < args.b; b++) {
            lengths[b] = seq_lens->scalar_type() == ScalarType::Int ? static_cast<int32_t*>(seq_lens->data_ptr())[b]
                                                                    : static_cast<int64_t*>(seq_lens->data_ptr())[b];
            check.require(lengths[b] >= 0 && lengths[b] <= args.s, "seq_lens[", b, "] is ", lengths[b],
                          ", expected 0 to ", args.s, ", the number of keys");
        }
    }
    args.lengths = lengths.data();
    args.scale = float(scale), args.causal = causal, args.absorbed = absorbed;
    cpu::Workspace workspace;
    kernels().mla_attention(workspace.threads, args);
}

void loop_step(const Tensor& h, const Tensor& e, const Tensor& block_out, const Tensor& h_out, const Tensor& cum_p,
               const Tensor& a, const Tensor& b, const Tensor& lora_down, const Tensor& lora_scale,
               const Tensor& lora_b, const Tensor& halt_w, const Tensor& halt_b, const std::optional<Tensor>& norm_w,
               const std::optional<Tensor>& t_rows, int64_t t, double threshold, double eps, int64_t loop_dim,
               const Tensor& h_new, const Tensor& h_out_new, const Tensor& cum_p_new,
               const std::optional<Tensor>& x_next) {
    Checks check("loop_step");
    cpu::LoopStepArgs args{};
    args.h = check.matrix(h, "h", -1, -1);
    args.n = h.size(0), args.d = h.size(1);
    args.e = check.matrix(e, "e", args.n, args.d);
    args.block_out = check.matrix(block_out, "block_out", args.n, args.d);
    args.h_out = check.matrix(h_out, "h_out", args.n, args.d);
    check.dtype(h_out, "h_out", {ScalarType::Float});
    args.cum_p = check.floats(cum_p, "cum_p", {args.n});
    args.a = check.floats(a, "A", {args.d});
    args.b = check.floats(b, "B", {args.d});
    args.lora_down = check.floats(lora_down, "lora_down", {-1, args.d});
    args.rank = lora_down.size(0);
    args.lora_scale = check.floats(lora_scale, "lora_scale", {-1, args.rank});
    args.scale_rows = lora_scale.size(0);
    check.require(args.scale_rows >= 1, "lora_scale has no rows, expected at least 1");
    args.lora_b = check.floats(lora_b, "lora_b", {args.rank, args.d});
    args.halt_w = check.floats(halt_w, "halt_w", {args.d});
    args.halt_b = check.floats(halt_b, "halt_b", {1});
    args.t = t;
    check.require(t >= 0, "t is ", t, ", expected 0 or more");
    if (t_rows) {
        check.shape(*t_rows, "t_rows", {args.n});
        check.dtype(*t_rows, "t_rows", {ScalarType::Int});
        args.t_rows = static_cast<const int32_t*>(t_rows->data_ptr());
        for (int64_t n = 0; n < args.n; n++)
            check.require(args.t_rows[n] >= 0, "t_rows[", n, "] is ", args.t_rows[n], ", expected 0 or more");
    }
    args.h_new = check.matrix(h_new, "h_new", args.n, args.d);
    check.same_type(h_new, "h_new", h, "h");
    args.h_out_new = check.matrix(h_out_new, "h_out_new", args.n, args.d);
    check.dtype(h_out_new, "h_out_new", {ScalarType::Float});
    args.cum_p_new = const_cast<float*>(check.floats(cum_p_new, "cum_p_new", {args.n}));
    if (x_next) {
        args.x_next = check.matrix(*x_next, "x_next", args.n, args.d);
        check.require(norm_w.has_value(), "norm_w is None, expected a tensor because x_next is given");
    }
    if (norm_w) args.norm_w = check.floats(*norm_w, "norm_w", {args.d});
    check.require(loop_dim >= 0 && loop_dim <= args.d, "loop_dim is ", loop_dim, ", expected 0 to ", args.d);
    args.loop_dim = loop_dim, args.threshold = float(threshold), args.eps = float(eps);
    cpu::Workspace workspace;
    kernels().loop_step(workspace.threads, args);
}

void rope(const Tensor& x, const Tensor& cos_sin, const Tensor& out) {
    Checks check("rope");
    cpu::RopeArgs args{};
    args.type = check.kernel_type(x, "x");
    args.x = check.tensor(x, "x", {-1, -1, -1, -1}, x, "x");
    args.b = x.size(0), args.t = x.size(1), args.h = x.size(2), args.d = x.size(3);
    check.require(args.d % 2 == 0, "x has an innermost size of ", args.d, ", expected an even one");
    check.shape(cos_sin, "cos_sin", {args.t, args.d / 2, 2});
    check.dtype(cos_sin, "cos_sin", {ScalarType::Float});
    check.require(args.d <= 2 || cos_sin.stride(1) == 2, "cos_sin has middle stride ", cos_sin.stride(1),
                  ", expected 2");
    args.out = check.tensor(out, "out", {args.b, args.t, args.h, args.d}, x, "x");
    args.cos_sin = static_cast<const float*>(cos_sin.data_ptr()), args.cos_sin_stride = cos_sin.stride(0);
    cpu::Workspace workspace;
    kernels().rope(workspace.threads, args);
}

void set_isa(std::string name) { cpu::set_variant(name.c_str()); }
std::string isa() { return cpu::current_variant().name; }

}  // namespace

STABLE_TORCH_LIBRARY(openmythos_native, m) {
    m.def("linear(Tensor x, Tensor weight, Tensor(a!) out) -> ()");
    m.def("swiglu(Tensor x, Tensor gate, Tensor up, Tensor down, Tensor(a!) out) -> ()");
    m.def("rms_norm(Tensor x, Tensor? residual, Tensor weight, float eps, Tensor(a!) out, Tensor(b!)? sum) -> ()");
    m.def("moe_route(Tensor logits, Tensor? bias, Tensor(a!) ids, Tensor(b!) weights, Tensor(c!) counts) -> ()");
    m.def("moe_experts(Tensor x, Tensor ids, Tensor weights, Tensor gate_up, Tensor down, Tensor(a!) out) -> ()");
    m.def(
        "moe(Tensor x, Tensor ids, Tensor weights, Tensor gate_up, Tensor down, Tensor[] shared_gate, "
        "Tensor[] shared_up, Tensor[] shared_down, Tensor(a!) out) -> ()");
    m.def(
        "mla_attention(Tensor q_nope, Tensor q_rope, Tensor latent, Tensor k_rope, Tensor w_uk, Tensor w_uv, "
        "float scale, bool causal, Tensor? seq_lens, Tensor? block_table, bool absorbed, Tensor(a!) out, "
        "Tensor(b!)? lse) -> ()");
    m.def(
        "loop_step(Tensor h, Tensor e, Tensor block_out, Tensor h_out, Tensor cum_p, Tensor A, Tensor B, "
        "Tensor lora_down, Tensor lora_scale, Tensor lora_b, Tensor halt_w, Tensor halt_b, Tensor? norm_w, "
        "Tensor? t_rows, int t, float threshold, float eps, int loop_dim, Tensor(a!) h_new, Tensor(b!) h_out_new, "
        "Tensor(c!) cum_p_new, Tensor(d!)? x_next) -> ()");
    m.def("rope(Tensor x, Tensor cos_sin, Tensor(a!) out) -> ()");
    m.def("set_isa(str name) -> ()");
    m.def("isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(openmythos_native, CPU, m) {
    m.impl("linear", boxed<linear>);
    m.impl("swiglu", boxed<swiglu>);
    m.impl("rms_norm", boxed<rms_norm>);
    m.impl("moe_route", boxed<moe_route>);
    m.impl("moe_experts", boxed<moe_experts>);
    m.impl("moe", boxed<moe>);
    m.impl("mla_attention", boxed<mla_attention>);
    m.impl("loop_step", boxed<loop_step>);
    m.impl("rope", boxed<rope>);
}

STABLE_TORCH_LIBRARY_IMPL(openmythos_native, CompositeExplicitAutograd, m) {
    m.impl("set_isa", boxed<set_isa>);
    m.impl("isa", boxed<isa>);
}

}  // namespace openmythos
