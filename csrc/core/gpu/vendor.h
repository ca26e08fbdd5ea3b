#pragma once

#include <stdint.h>

#include "vendors.h"

// Selects the vendor by compiler: nvcc, or clang or hipcc with `-x hip -nogpuinc -nogpulib`. No other file tests for
// the vendor. Its intrinsics.h defines
//
//     Vendor                                 its traits (vendors.h)
//     OPENMYTHOS_KERNEL(threads)             a kernel of at most this many threads
//     OPENMYTHOS_KERNEL_RESIDENT(threads, blocks)   the same, and how many blocks must fit a multiprocessor
//     thread_index ...                       indices, barriers, lane exchange, conversions, loads, asynchronous copies
//
// and its mma.h the fragments of matrix instructions (fragments.h).

#ifdef __HIP__
#include "hip/intrinsics.h"
#define OPENMYTHOS_MMA_HEADER "hip/mma.h"
#else
#include "cuda/intrinsics.h"
#define OPENMYTHOS_MMA_HEADER "cuda/mma.h"
#endif

// Dynamic shared memory; the launch sets its size.
#ifndef OPENMYTHOS_DYNAMIC_SHARED
#define OPENMYTHOS_DYNAMIC_SHARED(name) extern __shared__ Words name[]
#endif

namespace openmythos::gpu {

constexpr int WAVE = Vendor::WAVE;

OPENMYTHOS_DEVICE int lane_index() { return thread_index() % WAVE; }
OPENMYTHOS_DEVICE int wave_index() { return thread_index() / WAVE; }

}  // namespace openmythos::gpu
