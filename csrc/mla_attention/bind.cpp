#include "../core/register.h"
#include "plan.h"

// Latent attention, absorbed and decompressed: two ops of one call.

namespace openmythos {

namespace {

constexpr int64_t MAX_COUNT = int64_t(1) << 31;

void check_absorbed(const Checks& check, const MlaArgs& p) {
    check.require(p.t <= runtime::MLA_MAX_NEW, "q_nope has ", p.t, " tokens, expected at most ", runtime::MLA_MAX_NEW);
    for (auto [size, name] : {std::pair{p.dn, "w_uk"}, std::pair{p.dv, "w_uv"}})
        check.require(size <= runtime::MLA_MAX_HEAD, name, " has ", size, " rows a head, expected at most ",
                      runtime::MLA_MAX_HEAD);
    std::string pairs;
    for (const auto& [dc, dr] : runtime::MLA_WIDTHS) {
        if (dc == p.dc && dr == p.dr) return;
        pairs += (pairs.empty() ? "" : " or ") + std::to_string(dc) + " and " + std::to_string(dr);
    }
    check.require(false, "latent and k_rope have ", p.dc, " and ", p.dr, " columns, expected ", pairs);
}

void check_decompressed(const Checks& check, const MlaArgs& p) {
    check.require(p.dc % runtime::VEC == 0, "latent has ", p.dc, " columns, expected a multiple of ", runtime::VEC);
    check.require(p.b * (p.total + runtime::MLA_WHOLE_KEYS) < MAX_COUNT, "there are ", p.b, " sequences of ", p.total,
                  " keys, expected a product below 2^31");
    std::string sizes;
    for (const auto& [dn, dr, dv] : runtime::MLA_HEADS) {
        if (dn == p.dn && dr == p.dr && dv == p.dv) return;
        sizes += (sizes.empty() ? "" : " or ") + std::to_string(dn) + ", " + std::to_string(dr) + " and " +
                 std::to_string(dv);
    }
    check.require(false, "q_nope, q_rope and w_uv have heads of ", p.dn, ", ", p.dr, " and ", p.dv,
                  " elements, expected ", sizes);
}

// On a GPU reading the lengths would synchronise with the host.
void check_lengths(const Checks& check, const MlaArgs& args) {
    for (int64_t b = 0; args.seq_lens && b < args.b; b++) {
        const int64_t length = sequence_length(args, b);
        check.require(length >= 0 && length <= args.total, "seq_lens[", b, "] is ", length, ", expected 0 to ",
                      args.total, ", the number of keys");
    }
}

MlaArgs fill(const Checks& check, bool absorbed, const Tensor& q_nope, const Tensor& q_rope, const Tensor& latent,
             const Tensor& k_rope, const Tensor& w_uk, const Tensor& w_uv, double scale, bool causal,
             const std::optional<Tensor>& seq_lens, const std::optional<Tensor>& block_table) {
    MlaArgs args{};
    args.type = check.kernel_type(q_nope, "q_nope");
    check.require(absorbed || !check.on_gpu() || args.type != Type::float32,
                  "q_nope has dtype float32, expected bfloat16 or float16");
    const auto view = [&](const Tensor& x, const char* name, std::initializer_list<int64_t> sizes) {
        check.shape(x, name, sizes);
        check.same_type(x, name, q_nope, "q_nope");
        return x.data_ptr();
    };
    args.q_nope = view(q_nope, "q_nope", {-1, -1, -1, -1});
    const int64_t b = q_nope.size(0), t = q_nope.size(1), h = q_nope.size(2), dn = q_nope.size(3);
    check.require(h <= runtime::MLA_MAX_HEADS, "q_nope has ", h, " heads, expected at most ", runtime::MLA_MAX_HEADS);
    check.require(b < MAX_COUNT && t < MAX_COUNT && b * t * h < MAX_COUNT, "q_nope has ", b, " sequences of ", t,
                  " tokens and ", h, " heads, expected a product below 2^31");
    args.q_rope = view(q_rope, "q_rope", {b, t, h, -1});
    const int64_t dr = q_rope.size(3);
    args.latent = view(latent, "latent", {block_table ? -1 : b, -1, -1});
    const int64_t s = latent.size(1), dc = latent.size(2);
    args.k_rope = view(k_rope, "k_rope", {latent.size(0), s, dr});
    args.w_uk = view(w_uk, "w_uk", {h, dn, dc});
    args.w_uv = view(w_uv, "w_uv", {h, -1, dc});
    const int64_t dv = w_uv.size(1);
    if (seq_lens) args.seq_lens = check.indices(*seq_lens, "seq_lens", {b}, args.wide_lens);
    int64_t total = s;
    if (block_table) {
        check.require(check.on_gpu(), "block_table is given, expected None: the CPU kernels have no paged cache");
        check.require(seq_lens.has_value(), "seq_lens is None, expected a tensor because block_table is given");
        args.block_table = check.indices(*block_table, "block_table", {b, -1}, args.wide_table);
        check.require(s >= 1, "latent has pages of 0 keys, expected 1 or more");
        args.table_b = block_table->stride(0), args.page = int32_t(s), total = s * block_table->size(1);
    }
    check.require(total < MAX_COUNT - 1024, "there are ", total, " keys, expected fewer than 2^31 - 1024");
    for (int64_t size : {dn, dr, dc, dv})
        check.require(size < MAX_COUNT, "a tensor has ", size, " columns, expected fewer than 2^31");
    args.b = int32_t(b), args.t = int32_t(t), args.h = int32_t(h), args.dn = int32_t(dn), args.dr = int32_t(dr);
    args.dc = int32_t(dc), args.dv = int32_t(dv), args.total = int32_t(total), args.causal = causal;
    args.q_nope_b = q_nope.stride(0), args.q_nope_t = q_nope.stride(1), args.q_nope_h = q_nope.stride(2);
    args.q_rope_b = q_rope.stride(0), args.q_rope_t = q_rope.stride(1), args.q_rope_h = q_rope.stride(2);
    args.latent_b = latent.stride(0), args.latent_s = latent.stride(1);
    args.k_rope_b = k_rope.stride(0), args.k_rope_s = k_rope.stride(1);
    args.w_uk_h = w_uk.stride(0), args.w_uk_n = w_uk.stride(1);
    args.w_uv_h = w_uv.stride(0), args.w_uv_v = w_uv.stride(1);
    args.scale = float(check.on_gpu() ? scale * 1.4426950408889634 : scale);
    if (!check.on_gpu()) {
        check_lengths(check, args);
        return args;
    }
    // Sizes are checked before alignment: aligning the rows would not help a size that no kernel has.
    absorbed ? check_absorbed(check, args) : check_decompressed(check, args);
    for (auto [x, name] : {std::pair{&latent, "latent"}, std::pair{&k_rope, "k_rope"}, std::pair{&w_uk, "w_uk"},
                           std::pair{&w_uv, "w_uv"}})
        check.aligned(*x, name);
    if (!absorbed) check.aligned(q_nope, "q_nope"), check.aligned(q_rope, "q_rope");
    return args;
}

void fill_outputs(const Checks& check, MlaArgs& args, const Tensor& q_nope, const Tensor& out,
                  const std::optional<Tensor>& lse) {
    check.shape(out, "out", {args.b, args.t, args.h, args.dv});
    check.same_type(out, "out", q_nope, "q_nope");
    args.out = out.data_ptr();
    args.out_b = out.stride(0), args.out_t = out.stride(1), args.out_h = out.stride(2);
    if (lse) args.lse = const_cast<float*>(check.floats(*lse, "lse", {args.b, args.h, args.t}));
}

void mla_absorbed(const Tensor& q_nope, const Tensor& q_rope, const Tensor& latent, const Tensor& k_rope,
                  const Tensor& w_uk, const Tensor& w_uv, double scale, bool causal,
                  const std::optional<Tensor>& seq_lens, const std::optional<Tensor>& block_table, const Tensor& out,
                  const std::optional<Tensor>& lse) {
    const Checks check("mla_absorbed", q_nope);
    MlaArgs args = fill(check, true, q_nope, q_rope, latent, k_rope, w_uk, w_uv, scale, causal, seq_lens, block_table);
    fill_outputs(check, args, q_nope, out, lse);
    if (!check.on_gpu()) return run_on_cpu<&cpu::Kernels::mla_absorbed>(args);
    if (int64_t(args.b) * args.t * args.h == 0) return;
    auto plan = runtime::absorbed_plan(args, gpu_runtime().multiprocessors(check.device()));
    const auto scratch = torch::stable::new_empty(q_nope.stable(), {plan.scratch_bytes}, ScalarType::Byte);
    plan.set_scratch(scratch.data_ptr());
    for (const runtime::Launch* each : {&plan.fold, &plan.splits, &plan.combine}) launch(check, *each, &plan.args);
}

// Computes keys, and transposed values, from the latent: both products of the attention then contract over their
// innermost dimension. Heads are independent, and run as many at a time as the memory limit allows.
void launch_decompressed(const Checks& check, const MlaArgs& p, const torch::stable::Tensor& like,
                         torch::stable::Tensor latent, torch::stable::Tensor w_uk, torch::stable::Tensor w_uv) {
    MlaDecompressedArgs args = runtime::decompressed_args(p);
    if (p.page || p.seq_lens || args.padded != p.total) {
        latent = torch::stable::new_empty(like, {p.b, args.padded, p.dc + p.dr});
        args.gathered = latent.data_ptr();
        if (latent.numel()) launch(check, runtime::gather_plan(args), &args);
        args.k_rope = static_cast<const uint16_t*>(args.gathered) + p.dc;
        args.k_rope_b = latent.stride(0), args.k_rope_s = latent.stride(1);
        latent = torch::stable::narrow(latent, 2, 0, p.dc);
    }
    const int64_t max_heads = runtime::heads_at_a_time(args);
    for (int64_t head = 0; head < p.h; head += max_heads) {
        const int64_t heads = std::min(max_heads, p.h - head);
        const auto rows = [&](torch::stable::Tensor& w) {
            return torch::stable::unsqueeze(torch::stable::flatten(torch::stable::narrow(w, 0, head, heads), 0, 1), 0);
        };
        const auto keys = torch::stable::matmul(latent, torch::stable::transpose(rows(w_uk), 1, 2));
        const auto values = torch::stable::matmul(rows(w_uv), torch::stable::transpose(latent, 1, 2));
        for (const auto* made : {&keys, &values})
            check.require(made->scalar_type() == like.scalar_type() && made->is_contiguous(),
                          "torch.matmul returned another dtype or layout: call the op outside of autocast");
        MlaDecompressedArgs part = args;
        const auto from = [&](const void* tensor, int64_t stride) {
            return static_cast<const uint16_t*>(tensor) + head * stride;
        };
        part.keys = keys.data_ptr(), part.values = values.data_ptr(), part.h = int32_t(heads);
        part.q_nope = from(p.q_nope, p.q_nope_h), part.q_rope = from(p.q_rope, p.q_rope_h);
        part.out = static_cast<uint16_t*>(p.out) + head * p.out_h;
        if (p.lse) part.lse = p.lse + head * p.t;
        launch(check, runtime::decompressed_plan(part, p.type, gpu_runtime().tiles()), &part);
    }
}

void mla_decompressed(const Tensor& q_nope, const Tensor& q_rope, const Tensor& latent, const Tensor& k_rope,
                      const Tensor& w_uk, const Tensor& w_uv, double scale, bool causal,
                      const std::optional<Tensor>& seq_lens, const std::optional<Tensor>& block_table,
                      const Tensor& out, const std::optional<Tensor>& lse) {
    const Checks check("mla_decompressed", q_nope);
    MlaArgs args = fill(check, false, q_nope, q_rope, latent, k_rope, w_uk, w_uv, scale, causal, seq_lens, block_table);
    fill_outputs(check, args, q_nope, out, lse);
    if (!check.on_gpu()) return run_on_cpu<&cpu::Kernels::mla_decompressed>(args);
    check.aligned(out, "out");
    if (int64_t(args.b) * args.t * args.h == 0) return;
    launch_decompressed(check, args, q_nope.stable(), latent.stable(), w_uk.stable(), w_uv.stable());
}

template <bool absorbed>
std::string reason(const Tensor& q_nope, const Tensor& q_rope, const Tensor& latent, const Tensor& k_rope,
                   const Tensor& w_uk, const Tensor& w_uv, double scale, bool causal,
                   const std::optional<Tensor>& seq_lens, const std::optional<Tensor>& block_table) {
    return reason_of([&] {
        const Checks check(absorbed ? "mla_absorbed" : "mla_decompressed", q_nope, Mode::ask);
        fill(check, absorbed, q_nope, q_rope, latent, k_rope, w_uk, w_uv, scale, causal, seq_lens, block_table);
        require_device(check);
    });
}
constexpr auto &mla_absorbed_reason = reason<true>, &mla_decompressed_reason = reason<false>;

}  // namespace

#define OPENMYTHOS_MLA_INPUTS                                                                             \
    "Tensor q_nope, Tensor q_rope, Tensor latent, Tensor k_rope, Tensor w_uk, Tensor w_uv, float scale, " \
    "bool causal, Tensor? seq_lens, Tensor? block_table"
OPENMYTHOS_REGISTER(mla_absorbed, OPENMYTHOS_MLA_INPUTS, "Tensor(a!) out, Tensor(b!)? lse")
OPENMYTHOS_REGISTER(mla_decompressed, OPENMYTHOS_MLA_INPUTS, "Tensor(a!) out, Tensor(b!)? lse")

}  // namespace openmythos
