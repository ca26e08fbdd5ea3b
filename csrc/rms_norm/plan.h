#pragma once

#include "../runtime/plan.h"
#include "args.h"

namespace openmythos::runtime {

Planned<RmsNormArgs> plan(RmsNormArgs args);

}  // namespace openmythos::runtime
