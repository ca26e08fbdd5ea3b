#include <algorithm>

#include "plans.h"

namespace openmythos::runtime {

using gpu::Type;

namespace {

constexpr int HEADS = sizeof(MLA_HEADS) / sizeof(MLA_HEADS[0]);
constexpr unsigned THREADS = 256;
constexpr int64_t ROWS = 128, GATHERED_KEYS = 8;  // of a block
constexpr int64_t MOST_BYTES = int64_t(1) << 30;  // of keys and values at a time

#define OPENMYTHOS_MLA_PREFILL_NAMES(name)                                                   \
    {"openmythos_mla_prefill_" name "_64_32_64", "openmythos_mla_prefill_" name "_96_32_96", \
     "openmythos_mla_prefill_" name "_128_64_128"}
constexpr const char* NAMES[gpu::TYPES][HEADS] = {
    {}, OPENMYTHOS_MLA_PREFILL_NAMES("bf16"), OPENMYTHOS_MLA_PREFILL_NAMES("f16")};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The depth of a slab is the vendor's; wgmma wants slabs to begin at a multiple of 1024 bytes.
template <int DEPTH>
constexpr int BYTES[HEADS] = {gpu::MLA_PREFILL_BYTES<DEPTH, 64, 32, 64>, gpu::MLA_PREFILL_BYTES<DEPTH, 96, 32, 96>,
                              gpu::MLA_PREFILL_BYTES<DEPTH, 128, 64, 128>};

}  // namespace

// So many heads that their keys and values take no more than that, or one.
int64_t heads_at_a_time(const gpu::MlaPrefillParams& p) {
    const int64_t bytes = int64_t(p.b) * p.padded * (p.dn + p.dv) * 2;
    return std::clamp<int64_t>(MOST_BYTES / std::max<int64_t>(bytes, 1), 1, p.h);
}

Launch gather_plan(const gpu::MlaPrefillParams& p) {
    const unsigned blocks = unsigned(ceil_div(int64_t(p.b) * p.padded, GATHERED_KEYS));
    return {"mla_prefill", "openmythos_mla_prefill_gather", {blocks, 1, 1, THREADS, 0}, &p};
}

Launch plan(const gpu::MlaPrefillParams& p, Type type, bool cuda) {
    int heads = 0;
    while (heads < HEADS - 1 && MLA_HEADS[heads][0] != p.dn) heads++;
    const unsigned blocks = unsigned(ceil_div(p.t, ROWS) * p.h * p.b);
    const int shared = cuda ? BYTES<64>[heads] + 1024 : BYTES<32>[heads];
    return {"mla_prefill", NAMES[int(type)][heads], {blocks, 1, 1, THREADS, unsigned(shared)}, &p};
}

}  // namespace openmythos::runtime
