#pragma once

#include "run.h"

// Registers op `name`, and `name`_reason, which returns why the op cannot run on the same inputs, or "". One function
// each serves both CPU and GPU.
#define OPENMYTHOS_REGISTER(name, inputs, outputs)                                \
    STABLE_TORCH_LIBRARY_FRAGMENT(OPENMYTHOS_LIBRARY, m) {                        \
        m.def(#name "(" inputs ", " outputs ") -> ()");                           \
        m.def(#name "_reason(" inputs ") -> str");                                \
    }                                                                             \
    STABLE_TORCH_LIBRARY_IMPL(OPENMYTHOS_LIBRARY, CompositeExplicitAutograd, m) { \
        m.impl(#name, boxed<name>);                                               \
        m.impl(#name "_reason", boxed<name##_reason>);                            \
    }
