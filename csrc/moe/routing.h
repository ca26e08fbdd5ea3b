#pragma once

#include "../core/gpu/reduce.h"
#include "../core/gpu/rows.h"
#include "args.h"

// What all expert kernels share. A slot is one of the N k (row, choice) pairs. Routing weights are folded into the
// activations, so that the down projection sums over experts by itself.

namespace openmythos::gpu {

// The expert of a row's j-th choice, -1 if the id is out of range.
OPENMYTHOS_DEVICE int expert_of(const MoeExpertsArgs& p, int row, int j) {
    const int64_t at = row * p.ids_stride + j;
    const int64_t id =
        p.ids_bytes == 8 ? static_cast<const int64_t*>(p.ids)[at] : static_cast<const int32_t*>(p.ids)[at];
    return id >= 0 && id < p.experts ? int(id) : -1;
}
OPENMYTHOS_DEVICE int expert_of(const MoeExpertsArgs& p, int slot) { return expert_of(p, slot / p.k, slot % p.k); }

// Offset in `act` of shared expert s's activations of row 0.
OPENMYTHOS_DEVICE int64_t shared_offset(const MoeExpertsArgs& p, int s) {
    return int64_t(p.slots) * p.width + p.shared[s].column;
}

OPENMYTHOS_DEVICE float swiglu(float gate, float up) { return gate / (1.f + fast_exp2(gate * -1.44269504f)) * up; }

}  // namespace openmythos::gpu
