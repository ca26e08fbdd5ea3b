#pragma once

#include "kernels.h"

namespace openmythos::cpu {

// The threads and the scratch memory of one op call.
class Session {
public:
    Session();
    ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    const Threads threads;
};

}  // namespace openmythos::cpu
