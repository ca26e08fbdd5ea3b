#include <algorithm>

#include "plan.h"

namespace openmythos::runtime {

namespace {

constexpr int HEADS = sizeof(MLA_HEADS) / sizeof(MLA_HEADS[0]);
constexpr unsigned THREADS = 256;
constexpr int64_t ROWS = 128, GATHERED_KEYS = 8;  // per block
constexpr int64_t MAX_BYTES = int64_t(1) << 30;   // keys and values in memory at a time

#define OPENMYTHOS_MLA_DECOMPRESSED_NAMES(name)                                                        \
    {"openmythos_mla_decompressed_" name "_64_32_64", "openmythos_mla_decompressed_" name "_96_32_96", \
     "openmythos_mla_decompressed_" name "_128_64_128"}
constexpr const char* NAMES[TYPES][HEADS] = {
    {}, OPENMYTHOS_MLA_DECOMPRESSED_NAMES("bf16"), OPENMYTHOS_MLA_DECOMPRESSED_NAMES("f16")};

}  // namespace

MlaDecompressedArgs decompressed_args(const MlaArgs& p) {
    MlaDecompressedArgs x{};
    x.q_nope = p.q_nope, x.q_rope = p.q_rope, x.latent = p.latent, x.k_rope = p.k_rope;
    x.seq_lens = p.seq_lens, x.block_table = p.block_table, x.out = p.out, x.lse = p.lse;
    x.q_nope_b = p.q_nope_b, x.q_nope_t = p.q_nope_t, x.q_nope_h = p.q_nope_h;
    x.q_rope_b = p.q_rope_b, x.q_rope_t = p.q_rope_t, x.q_rope_h = p.q_rope_h;
    x.out_b = p.out_b, x.out_t = p.out_t, x.out_h = p.out_h, x.lse_b = int64_t(p.h) * p.t;
    x.latent_b = p.latent_b, x.latent_s = p.latent_s, x.k_rope_b = p.k_rope_b, x.k_rope_s = p.k_rope_s;
    x.table_b = p.table_b, x.b = p.b, x.t = p.t, x.h = p.h, x.dn = p.dn, x.dr = p.dr, x.dc = p.dc, x.dv = p.dv;
    x.total = p.total, x.padded = int32_t(ceil_div(p.total, MLA_WHOLE_KEYS) * MLA_WHOLE_KEYS);
    x.page = p.page, x.causal = p.causal, x.wide_lens = p.wide_lens, x.wide_table = p.wide_table, x.scale = p.scale;
    return x;
}

// As many heads as MAX_BYTES of keys and values allow, at least one.
int64_t heads_at_a_time(const MlaDecompressedArgs& p) {
    const int64_t bytes = int64_t(p.b) * p.padded * (p.dn + p.dv) * 2;
    return std::clamp<int64_t>(MAX_BYTES / std::max<int64_t>(bytes, 1), 1, p.h);
}

Launch gather_plan(const MlaDecompressedArgs& p) {
    const unsigned blocks = unsigned(ceil_div(int64_t(p.b) * p.padded, GATHERED_KEYS));
    return {"mla_decompressed", "openmythos_mla_decompressed_gather", {blocks, 1, 1, THREADS, 0}};
}

Launch decompressed_plan(const MlaDecompressedArgs& p, Type type, const gpu::SharedTiles& tiles) {
    int heads = 0;
    while (heads < HEADS - 1 && MLA_HEADS[heads][0] != p.dn) heads++;
    const unsigned blocks = unsigned(ceil_div(p.t, ROWS) * p.h * p.b);
    const auto [dn, dr, dv] = MLA_HEADS[heads];
    const int shared = tiles.bytes(mla_decompressed_elements(tiles.columns, dn, dr, dv));
    return {"mla_decompressed", NAMES[int(type)][heads], {blocks, 1, 1, THREADS, unsigned(shared)}};
}

}  // namespace openmythos::runtime
