#include <algorithm>

#include "plan.h"

namespace openmythos::runtime {

// One wave per row. A single block writes its counts; several add theirs.
Planned<MoeRouteArgs> plan(MoeRouteArgs p) {
    p.rows_per_block = std::min({ROUTE_MAX_ROWS, ROUTE_MAX_CHOICES / p.k, std::max(p.rows, 1)});
    const unsigned blocks = unsigned(std::max(ceil_div(p.rows, p.rows_per_block), int64_t(1)));
    p.add_counts = blocks > 1;
    const char* kernel = p.experts <= 64    ? "openmythos_moe_route_experts64"
                         : p.experts <= 256 ? "openmythos_moe_route_experts256"
                                            : "openmythos_moe_route_experts1024";
    return {p, {"moe_route", kernel, {blocks, 1, 1, unsigned(32 * p.rows_per_block), 0}}};
}

}  // namespace openmythos::runtime
