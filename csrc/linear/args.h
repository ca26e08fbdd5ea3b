#pragma once

#include "../core/types.h"

namespace openmythos {

struct LinearArgs {
    Matrix x, weight, out;
    int64_t n, k, o;
};

struct SwigluArgs {
    Matrix x, gate, up, down, out;
    int64_t n, d, i, o;
};

}  // namespace openmythos
