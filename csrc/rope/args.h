#pragma once

#include "../core/types.h"

namespace openmythos {

struct RopeArgs {
    Type type;
    Tensor4 x, out;  // (B, T, H, d)
    const float* cos_sin;
    int64_t cos_sin_stride;
    int64_t b, t, h, d;
};

}  // namespace openmythos
