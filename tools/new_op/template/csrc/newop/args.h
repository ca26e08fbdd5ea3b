#pragma once

#include "../core/types.h"

// The only argument of the kernels: a struct passed by value, with one layout on the host, the CPU and the GPU. Strides
// count elements; the innermost is 1.

namespace openmythos {

struct NewOpArgs {
    Matrix x, out;
    int64_t n;
    int32_t d;
    int32_t aligned;  // set by plan.cpp for GPU kernels: rows 16-byte aligned, d a multiple of 8
};

}  // namespace openmythos
