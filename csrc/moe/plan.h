#pragma once

#include "../runtime/plan.h"
#include "args.h"

namespace openmythos::runtime {

// Limit of x's columns and of an expert's hidden units, so that blocks and columns fit 32 bits.
constexpr int64_t MAX_MOE_WIDTH = int64_t(1) << 22;

Planned<MoeRouteArgs> plan(MoeRouteArgs args);

// All rows of x and of the weights are 16-byte aligned, and all sizes are multiples of VEC.
bool is_aligned(const MoeExpertsArgs& args);

// 1 to MOE_MAX_ROWS rows: `down` reads what `up` wrote. Without experts `up` has no blocks and must not be launched.
// The caller points args.act to a buffer of act_elements() elements.
struct MoeStreamedPlan {
    MoeExpertsArgs args;
    Launch up, down;

    int64_t act_elements() const { return int64_t(args.slots) * args.width + int64_t(args.rows) * args.shared_width; }
};
MoeStreamedPlan streamed_plan(MoeExpertsArgs args);

// More rows: each launch reads what the ones before it wrote; skip those without blocks.
struct MoeGroupedPlan {
    MoeGroupedArgs args;
    Launch launches[5];
    int64_t max_blocks;  // largest grid of all launches
    int64_t scratch_bytes;

    void set_scratch(void* scratch);
};
MoeGroupedPlan grouped_plan(const MoeExpertsArgs& args, const gpu::SharedTiles& tiles);

}  // namespace openmythos::runtime
