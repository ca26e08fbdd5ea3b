#include "ops_gpu.h"

// Latent attention: the absorbed form for few new tokens, the decompressed one for any number.

namespace openmythos::on_gpu {

namespace {

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

void check_widths(const Checks& check, const MlaArgs& p) {
    std::string pairs;
    for (const auto& [dc, dr] : runtime::MLA_WIDTHS) {
        if (dc == p.dc && dr == p.dr) return;
        pairs += (pairs.empty() ? "" : " or ") + std::to_string(dc) + " and " + std::to_string(dr);
    }
    check.require(false, "latent and k_rope have ", p.dc, " and ", p.dr, " columns, expected ", pairs);
}

void check_heads(const Checks& check, const MlaArgs& p) {
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
void run_decompressed(const Checks& check, const MlaArgs& p, Type type, const torch::stable::Tensor& like,
                      torch::stable::Tensor latent, torch::stable::Tensor w_uk, torch::stable::Tensor w_uv) {
    MlaDecompressedArgs args = runtime::decompressed_params(p);
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
        for (const auto* made : {&keys, &values})
            check.require(made->scalar_type() == like.scalar_type() && made->is_contiguous(),
                          "torch.matmul gave another dtype or layout than it was asked for, expected no autocast here");
        MlaDecompressedArgs part = args;
        const auto from = [&](const void* tensor, int64_t stride) {
            return static_cast<const uint16_t*>(tensor) + head * stride;
        };
        part.keys = keys.data_ptr(), part.values = values.data_ptr(), part.h = int32_t(heads);
        part.q_nope = from(p.q_nope, p.q_nope_h), part.q_rope = from(p.q_rope, p.q_rope_h);
        part.out = static_cast<uint16_t*>(p.out) + head * p.out_h;
        if (p.lse) part.lse = p.lse + head * p.t;
        launch(check, runtime::plan(part, type, gpu_runtime().tiles()));
    }
}

}  // namespace

void mla_attention(const Tensor& q_nope, const Tensor& q_rope, const Tensor& latent, const Tensor& k_rope,
                   const Tensor& w_uk, const Tensor& w_uv, double scale, bool causal,
                   const std::optional<Tensor>& seq_lens, const std::optional<Tensor>& block_table, bool absorbed,
                   const Tensor& out, const std::optional<Tensor>& lse) {
    Checks check("mla_attention", OPENMYTHOS_GPU_WHERE);
    MlaArgs args{};
    const Type type = gpu_type(check, q_nope, "q_nope");
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
        run_decompressed(check, args, type, q_nope.stable(), latent.stable(), w_uk.stable(), w_uv.stable());
        return;
    }
    const int64_t bytes = runtime::scratch_bytes(args, type, gpu_runtime().multiprocessors(check.device()));
    const auto scratch = torch::stable::new_empty(q_nope.stable(), {bytes}, ScalarType::Byte);
    const runtime::MlaPlan plan = runtime::plan(args, type, scratch.data_ptr());
    for (const runtime::Launch* each : {&plan.fold, &plan.splits, &plan.combine}) launch(check, *each);
}

}  // namespace openmythos::on_gpu
