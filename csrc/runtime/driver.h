#pragma once

#include <stdexcept>
#include <string>

// The GPU driver behind one interface, opened with dlopen: nothing links against CUDA or ROCm.

namespace openmythos::runtime {

struct Device {
    std::string arch;  // "sm_90", "gfx1151"
    int multiprocessors;
};

using Module = void*;
using Function = void*;

struct Grid {
    unsigned x = 1, y = 1, z = 1;
    unsigned threads = 1;
    unsigned shared = 0;  // dynamic shared memory in bytes
};

// Names the failed driver call and has the driver's message. The caller adds what it was trying to do.
class DriverError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

class Driver {
public:
    virtual ~Driver() = default;
    virtual std::string version() const = 0;  // for messages: "a driver for CUDA 13.0"
    virtual int device_count() const = 0;
    virtual Device device(int index) const = 0;
    virtual Module load(int device, const void* image) const = 0;
    virtual Function function(int device, Module module, const char* name) const = 0;
    // Raises the function's limit of dynamic shared memory.
    virtual void allow_shared(int device, Function function, unsigned bytes) const = 0;
    // `params` is the kernel's only argument, a struct passed by value.
    virtual void launch(int device, Function function, const Grid& grid, void* stream, const void* params) const = 0;
};

}  // namespace openmythos::runtime
