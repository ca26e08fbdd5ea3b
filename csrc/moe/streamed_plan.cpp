#include "plan.h"

namespace openmythos::runtime {

namespace {

struct Pair {
    const char *up, *down;
    int hidden;   // hidden units per block of the first launch
    int columns;  // columns of the result per block of the second launch
    unsigned up_threads, down_threads;
};

// Kernel names, as instantiated in moe_streamed.cu.
constexpr Pair one_row(const char* up, const char* down) { return {up, down, 16, 4, 256, 256}; }
constexpr Pair fma_rows(const char* up, const char* down) { return {up, down, 8, 2, 256, 256}; }
constexpr Pair mma_rows(const char* up, const char* down) { return {up, down, 16, 16, 128, 512}; }
constexpr Pair PAIRS[TYPES][2] = {
    {one_row("openmythos_moe_streamed_up_f32_rows1", "openmythos_moe_streamed_down_f32_rows1"),
     fma_rows("openmythos_moe_streamed_up_f32_rows16", "openmythos_moe_streamed_down_f32_rows16")},
    {one_row("openmythos_moe_streamed_up_bf16_rows1", "openmythos_moe_streamed_down_bf16_rows1"),
     mma_rows("openmythos_moe_streamed_up_bf16_rows16", "openmythos_moe_streamed_down_bf16_rows16")},
    {one_row("openmythos_moe_streamed_up_f16_rows1", "openmythos_moe_streamed_down_f16_rows1"),
     mma_rows("openmythos_moe_streamed_up_f16_rows16", "openmythos_moe_streamed_down_f16_rows16")}};
constexpr Pair ANY = fma_rows("openmythos_moe_streamed_up_any", "openmythos_moe_streamed_down_any");

}  // namespace

bool is_aligned(const MoeExpertsArgs& p) {
    const int64_t size = size_of(p.x.type);
    const auto whole = [&](const void* data, int64_t stride) { return is_aligned(data) && stride * size % 16 == 0; };
    bool fast = p.d % VEC == 0 && p.width % VEC == 0 && whole(p.x.data, p.x.stride);
    for (int64_t stride : p.gate_up_strides) fast = fast && whole(p.gate_up, stride);
    for (int64_t stride : p.down_strides) fast = fast && whole(p.down, stride);
    for (int s = 0; s < p.shared_count; s++) {
        const MoeShared& expert = p.shared[s];
        fast = fast && expert.width % VEC == 0 && whole(expert.gate, expert.gate_stride) &&
               whole(expert.up, expert.up_stride) && whole(expert.down, expert.down_stride);
    }
    return fast;
}

MoeStreamedPlan streamed_plan(MoeExpertsArgs p) {
    p.aligned = is_aligned(p);
    const Pair& pair = p.aligned ? PAIRS[int(p.x.type)][p.rows > 1] : ANY;
    p.hidden_per_block = pair.hidden;
    const auto blocks = [&](int64_t width) { return ceil_div(width, pair.hidden); };
    int64_t total = 0;
    for (int s = 0; s < p.shared_count; s++) p.shared[s].end_block = int32_t(total += blocks(p.shared[s].width));
    p.shared_blocks = int32_t(total);
    total += p.slots * blocks(p.width);
    const unsigned columns = unsigned(ceil_div(p.d, pair.columns));
    return {p,
            {"moe_streamed", pair.up, {unsigned(total), 1, 1, pair.up_threads, 0}},
            {"moe_streamed", pair.down, {columns, 1, 1, pair.down_threads, 0}}};
}

}  // namespace openmythos::runtime
