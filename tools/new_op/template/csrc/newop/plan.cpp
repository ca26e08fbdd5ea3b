#include "plan.h"

#include <algorithm>

namespace openmythos::runtime {

Planned<NewOpArgs> plan(NewOpArgs p) {
    p.aligned = p.d % VEC == 0 && p.x.type == p.out.type && is_aligned(p.x) && is_aligned(p.out);
    constexpr const char* names[TYPES] = {"openmythos_newop_f32", "openmythos_newop_bf16", "openmythos_newop_f16"};
    const char* kernel = p.aligned ? names[int(p.x.type)] : "openmythos_newop_any";
    const int64_t threads = std::min(int64_t(1024), ceil_div(ceil_div(p.d, VEC), 32) * 32);
    return {p, {"newop", kernel, {unsigned(p.n), 1, 1, unsigned(threads), 0}}};
}

}  // namespace openmythos::runtime
