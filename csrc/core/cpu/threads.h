#pragma once

#include "kernels.h"

namespace openmythos::cpu {

// The threads and the scratch memory of one op call.
class Workspace {
public:
    Workspace();
    ~Workspace();
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    const Threads threads;
};

}  // namespace openmythos::cpu
