#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

// The GPU driver behind one interface, found with dlopen: nothing is linked against CUDA or ROCm.

namespace openmythos::runtime {

struct Device {
    std::string arch;     // "sm_90", "gfx1151"
    int multiprocessors;  // how many blocks it takes to have one on each
};

using Module = void*;
using Function = void*;

struct Grid {
    unsigned x = 1, y = 1, z = 1;
    unsigned threads = 1;
    unsigned shared = 0;  // dynamic shared memory in bytes
};

// What the driver said: which of its calls failed, and how. Whoever knows what the call was for says so.
class DriverError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

class Driver {
public:
    virtual ~Driver() = default;
    virtual const char* vendor() const = 0;   // "cuda" or "rocm"
    virtual std::string version() const = 0;  // as a person reads it: "driver of CUDA 13.0"
    virtual int device_count() const = 0;
    virtual Device device(int index) const = 0;
    virtual Module load(int device, const void* image) const = 0;
    virtual Function function(int device, Module module, const char* name) const = 0;
    virtual void allow_shared(int device, Function function, unsigned bytes) const = 0;
    // `params` is the kernel's one argument, a struct that it takes by value.
    virtual void launch(int device, Function function, const Grid& grid, void* stream, const void* params) const = 0;
};

// Throws a DriverError with a sentence when there is no such driver here.
std::unique_ptr<Driver> open_cuda();
std::unique_ptr<Driver> open_hip();

}  // namespace openmythos::runtime
