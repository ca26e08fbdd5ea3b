#include <algorithm>

#include "plan.h"

namespace openmythos::runtime {

namespace {

constexpr int WIDTHS = sizeof(MLA_WIDTHS) / sizeof(MLA_WIDTHS[0]);
constexpr unsigned THREADS = 256;
constexpr int64_t TOKENS = 4, FOLD_COLUMNS = 64, COMBINE_COLUMNS = 16;  // per block
constexpr int64_t MIN_KEYS_PER_SPLIT = 64, MAX_SPLITS = 256;

#define OPENMYTHOS_MLA_NAMES(name)                                                          \
    {"openmythos_mla_absorbed_" name "_256_32", "openmythos_mla_absorbed_" name "_384_32",  \
     "openmythos_mla_absorbed_" name "_512_64", "openmythos_mla_absorbed_" name "_1024_64", \
     "openmythos_mla_absorbed_" name "_fold",   "openmythos_mla_absorbed_" name "_combine"}
constexpr const char* NAMES[TYPES][WIDTHS + 2] = {OPENMYTHOS_MLA_NAMES("f32"), OPENMYTHOS_MLA_NAMES("bf16"),
                                                  OPENMYTHOS_MLA_NAMES("f16")};
constexpr const char* NAMES_ROWS32[TYPES][WIDTHS] = {
    {},
    {"openmythos_mla_absorbed_bf16_256_32_rows32", "openmythos_mla_absorbed_bf16_384_32_rows32",
     "openmythos_mla_absorbed_bf16_512_64_rows32"},
    {"openmythos_mla_absorbed_f16_256_32_rows32", "openmythos_mla_absorbed_f16_384_32_rows32",
     "openmythos_mla_absorbed_f16_512_64_rows32"}};

// Rows (token, head) per block: more rows read the latent less often, but 32 only pay if there are more than 16.
int64_t block_rows(const MlaArgs& p) {
    if (p.type == Type::float32) return p.dc > 384 ? 8 : 16;
    return p.dc <= 512 && int64_t(p.t) * p.h > 16 ? 32 : 16;
}
// Resident blocks per multiprocessor.
int64_t resident(const MlaArgs& p) { return p.dc > 512 || (p.dc > 256 && block_rows(p) > 16) ? 1 : 2; }

int64_t rounded(int64_t bytes) { return ceil_div(bytes, 256) * 256; }
int64_t folded_bytes(const MlaArgs& p) { return rounded(int64_t(p.b) * p.t * p.h * p.dc * size_of(p.type)); }
int64_t part_bytes(const MlaArgs& p) { return rounded(int64_t(p.b) * p.splits * p.t * p.h * p.dc * 4); }

}  // namespace

void MlaAbsorbedPlan::set_scratch(void* scratch) {
    char* at = static_cast<char*>(scratch);
    args.folded = at;
    args.part = reinterpret_cast<float*>(at += folded_bytes(args));
    args.part_lse = reinterpret_cast<float*>(at + part_bytes(args));
}

MlaAbsorbedPlan absorbed_plan(MlaArgs p, int multiprocessors) {
    const int64_t blocks = p.b * ceil_div(int64_t(p.t) * p.h, block_rows(p));
    const int64_t wanted = multiprocessors * resident(p) / std::max<int64_t>(blocks, 1);
    p.splits = int32_t(std::max<int64_t>(1, std::min({wanted, ceil_div(p.total, MIN_KEYS_PER_SPLIT), MAX_SPLITS})));
    // Each block reads all splits of its head, so there are no more blocks than multiprocessors.
    const int64_t heads = std::max<int64_t>(ceil_div(int64_t(p.b) * p.t, TOKENS) * p.h, 1);
    const int64_t max_blocks = std::max<int64_t>(ceil_div(p.dv, COMBINE_COLUMNS), 1);
    const int64_t each = std::clamp<int64_t>(multiprocessors / heads, 1, max_blocks);
    p.columns = int32_t(ceil_div(max_blocks, each) * COMBINE_COLUMNS);
    int width = 0;
    while (width < WIDTHS - 1 && MLA_WIDTHS[width][0] != p.dc) width++;
    const auto& names = NAMES[int(p.type)];
    const char* attention = block_rows(p) > 16 ? NAMES_ROWS32[int(p.type)][width] : names[width];
    const unsigned tokens = unsigned(ceil_div(int64_t(p.b) * p.t, TOKENS)), h = unsigned(p.h);
    const auto launch = [](const char* kernel, unsigned x, unsigned y, unsigned z) {
        return Launch{"mla_absorbed", kernel, {x, y, z, THREADS, 0}};
    };
    return {p, launch(names[WIDTHS], tokens, h, unsigned(p.dc / FOLD_COLUMNS)),
            launch(attention, unsigned(blocks), unsigned(p.splits), 1),
            launch(names[WIDTHS + 1], tokens, h, unsigned(ceil_div(p.dv, p.columns))),
            folded_bytes(p) + part_bytes(p) + int64_t(p.b) * p.splits * p.t * p.h * 4};
}

}  // namespace openmythos::runtime
