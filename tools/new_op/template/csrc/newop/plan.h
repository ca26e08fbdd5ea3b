#pragma once

#include "../runtime/plan.h"
#include "args.h"

namespace openmythos::runtime {

Planned<NewOpArgs> plan(NewOpArgs args);

}  // namespace openmythos::runtime
