#pragma once

#include "../runtime/plan.h"
#include "args.h"

namespace openmythos::runtime {

// Limits of the GPU kernels.
constexpr int64_t MAX_RANK = 256, MAX_LOOP_DIM = 8192, MAX_SCALES = int64_t(1) << 20, MAX_LOOP = int64_t(1) << 30;

Planned<LoopStepArgs> plan(LoopStepArgs args, int multiprocessors);

}  // namespace openmythos::runtime
