#pragma once

#include "../core/types.h"

// The only argument of the kernels: a struct passed by value, with one layout on the host, the CPU and the GPU. Strides
// count elements; the innermost is 1.

namespace openmythos {

struct RmsNormArgs {
    Matrix x, residual, out, sum;  // data is null if absent
    const void* weight;
    Type weight_type;
    int32_t aligned;  // set by plan.cpp for GPU kernels: rows and weight 16-byte aligned, d a multiple of 8
    int64_t n;
    int32_t d;
    float eps;
};

}  // namespace openmythos
