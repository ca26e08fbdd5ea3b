#include <algorithm>
#include <utility>

#include "plan.h"

namespace openmythos::runtime {

namespace {

constexpr int64_t BLOCK = MOE_BLOCK, UNITS = BLOCK / 2, THREADS = MOE_BLOCK_THREADS;

// Kernel names, as instantiated in moe_grouped.cu.
struct Kernels {
    const char *up, *down, *sum;
};
constexpr Kernels BF16 = {"openmythos_moe_grouped_up_bf16", "openmythos_moe_grouped_down_bf16",
                          "openmythos_moe_grouped_sum_bf16"};
constexpr Kernels F16 = {"openmythos_moe_grouped_up_f16", "openmythos_moe_grouped_down_f16",
                         "openmythos_moe_grouped_sum_f16"};

// Grids of the two GEMMs.
int64_t up_blocks(const MoeGroupedArgs& p) {
    int64_t blocks = p.tile_count * ceil_div(p.moe.width, UNITS);
    for (int s = 0; s < p.moe.shared_count; s++)
        blocks += ceil_div(p.moe.rows, BLOCK) * ceil_div(p.moe.shared[s].width, UNITS);
    return blocks;
}
int64_t down_blocks(const MoeGroupedArgs& p) {
    return (p.tile_count + (p.moe.shared_count ? ceil_div(p.moe.rows, BLOCK) : 0)) * ceil_div(p.moe.d, BLOCK);
}

// Sizes of the scratch buffers in bytes, each a multiple of 16.
int64_t tile_bytes(const MoeGroupedArgs& p) { return p.tile_count * int64_t(sizeof(MoeTile)); }
int64_t act_bytes(const MoeGroupedArgs& p) {
    return 2 * (int64_t(p.moe.slots) * p.moe.width + int64_t(p.moe.rows) * p.moe.shared_width);
}
int64_t y_bytes(const MoeGroupedArgs& p) {
    return 2 * (int64_t(p.moe.slots) + (p.moe.shared_count ? p.moe.rows : 0)) * p.moe.d;
}
int64_t count_bytes(const MoeGroupedArgs& p) { return 4 * int64_t(p.chunks) * p.moe.experts; }

}  // namespace

void MoeGroupedPlan::set_scratch(void* scratch) {
    char* at = static_cast<char*>(scratch);
    const auto cut = [&](int64_t bytes) { return std::exchange(at, at + bytes); };
    args.moe.act = cut(act_bytes(args)), args.y = cut(y_bytes(args));
    args.tiles = reinterpret_cast<MoeTile*>(cut(tile_bytes(args)));
    args.counts = reinterpret_cast<int32_t*>(cut(count_bytes(args)));
    args.slots = reinterpret_cast<int32_t*>(at);
}

MoeGroupedPlan grouped_plan(const MoeExpertsArgs& moe, const gpu::SharedTiles& tiles) {
    MoeGroupedArgs p{};
    p.moe = moe, p.moe.aligned = is_aligned(moe), p.moe.hidden_per_block = UNITS;
    const int64_t slots = moe.slots;
    p.chunk = int32_t(ceil_div(ceil_div(slots, MOE_MAX_CHUNKS), THREADS) * THREADS);
    p.chunks = slots ? int32_t(ceil_div(slots, p.chunk)) : 0;
    p.tile_count = int32_t((slots + std::min<int64_t>(moe.experts, slots) * (BLOCK - 1)) / BLOCK);
    int64_t end = 0;
    for (int s = 0; s < moe.shared_count; s++) {
        end += ceil_div(moe.rows, BLOCK) * ceil_div(moe.shared[s].width, UNITS);
        p.moe.shared[s].end_block = int32_t(end);
    }
    p.moe.shared_blocks = int32_t(end);
    const Kernels& kernels = moe.x.type == Type::bfloat16 ? BF16 : F16;
    const auto launch = [](const char* kernel, int64_t blocks, int64_t threads, unsigned dynamic) {
        return Launch{"moe_grouped", kernel, {unsigned(blocks), 1, 1, unsigned(threads), dynamic}};
    };
    const unsigned shared = unsigned(tiles.pipeline_bytes(2 * BLOCK));
    const int64_t sum_threads = std::min(ceil_div(ceil_div(moe.d, VEC), 32) * 32, THREADS);
    const int64_t scratch_bytes = act_bytes(p) + y_bytes(p) + tile_bytes(p) + count_bytes(p) + 4 * slots;
    return {p,
            {launch("openmythos_moe_grouped_count", p.chunks, THREADS, 0),
             launch("openmythos_moe_grouped_place", p.chunks, THREADS, 0),
             launch(kernels.up, up_blocks(p), THREADS, shared), launch(kernels.down, down_blocks(p), THREADS, shared),
             launch(kernels.sum, moe.rows, sum_threads, 0)},
            std::max({up_blocks(p), down_blocks(p), int64_t(moe.rows)}),
            scratch_bytes};
}

}  // namespace openmythos::runtime
