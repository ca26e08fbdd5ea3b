#pragma once

#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "driver.h"
#include "manifest.h"

namespace openmythos::runtime {

// One launch of a kernel: everything but where.
struct Launch {
    const char* op;      // whose code object the kernel is in
    const char* kernel;  // a string literal
    Grid grid;
    const void* params;  // the kernel's one argument
};

// The code objects of one folder on the devices of one driver. Modules and functions are loaded when first needed and
// kept. Any thread may call anything.
class Runtime {
public:
    // Never throws: what is wrong is said by why_not and launch.
    explicit Runtime(const std::string& folder);

    // Why nothing can run on the device, in a sentence, or "".
    std::string why_not(int device) const;
    std::string describe() const;
    int multiprocessors(int device);
    // Whether the code objects are CUDA's; otherwise they are ROCm's.
    bool is_cuda() const { return manifest_.vendor == "cuda"; }
    void launch(const Launch& launch, int device, void* stream);

private:
    struct Kernel {
        Function function;
        unsigned shared_allowed;
    };
    struct PerDevice {
        Device facts;
        std::unordered_map<std::string, Module> modules;
        std::unordered_map<std::string, Kernel> kernels;
    };

    PerDevice& device(int index) const;
    Kernel kernel(const Launch& launch, int index);
    std::string read(const CodeObject& object) const;

    std::string folder_, broken_;
    Manifest manifest_;
    std::unique_ptr<Driver> driver_;
    mutable std::shared_mutex mutex_;
    mutable std::vector<std::unique_ptr<PerDevice>> devices_;
};

}  // namespace openmythos::runtime
