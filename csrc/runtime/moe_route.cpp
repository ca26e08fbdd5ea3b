#include <algorithm>

#include "plans.h"

namespace openmythos::runtime {

// One block, a wave a row: counts then need no other block's.
Launch plan(gpu::MoeRouteParams& p) {
    const char* kernel = p.experts <= 64    ? "openmythos_moe_route_experts64"
                         : p.experts <= 256 ? "openmythos_moe_route_experts256"
                                            : "openmythos_moe_route_experts1024";
    return {"moe_route", kernel, {1, 1, 1, unsigned(32 * std::max(p.rows, 1)), 0}, &p};
}

}  // namespace openmythos::runtime
