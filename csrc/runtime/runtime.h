#pragma once

#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "manifest.h"
#include "vendor.h"

namespace openmythos::runtime {

// A kernel and its grid; device, stream and arguments are passed to Runtime::launch().
struct Launch {
    const char* op;  // names the code object
    const char* kernel;
    Grid grid;
};

// Launches the kernels of one folder of code objects. Modules and functions are loaded on first use and kept.
// Thread-safe.
class Runtime {
public:
    // Does not throw: why_not() and launch() report what is wrong.
    explicit Runtime(const std::string& folder);

    // Why nothing can run on the device, or "".
    std::string why_not(int device) const;
    std::string describe() const;
    int multiprocessors(int device);
    // Tile sizes of the device code. Without code objects any vendor's will do, since launch() throws.
    const gpu::SharedTiles& tiles() const { return (manifest_.vendor ? manifest_.vendor : vendors().front())->tiles; }
    // `args` is the kernel's only argument, a struct passed by value.
    void launch(const Launch& launch, const void* args, int device, void* stream);

private:
    struct Kernel {
        Function function;
        unsigned shared_allowed;
    };
    struct PerDevice {
        Device info;
        std::string unsupported;  // why no code object suits the device, or ""
        std::unordered_map<std::string, Module> modules;
        std::unordered_map<std::string, Kernel> kernels;
    };

    PerDevice& device(int index) const;
    Kernel kernel(const Launch& launch, int index);
    std::string read(const CodeObject& object) const;

    std::string folder_, error_;
    Manifest manifest_;
    std::unique_ptr<Driver> driver_;
    mutable std::shared_mutex mutex_;
    mutable std::vector<std::unique_ptr<PerDevice>> devices_;
};

}  // namespace openmythos::runtime
