#include <cstring>
#include <vector>

#include "shared_library.h"
#include "vendor.h"

namespace openmythos::runtime {

namespace {

using hipError = int;
constexpr int CAPTURE_RELAXED = 2;
// Larger than any version of hipDeviceProp_tR0600.
constexpr size_t PROPERTIES_BYTES = 16384;
constexpr size_t MULTIPROCESSORS_OFFSET = 388, NAME_BYTES = 256;

class HipDriver final : public Driver {
public:
    HipDriver()
        : library_("libamdhip64.so",
                   {"libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so", "/opt/rocm/lib/libamdhip64.so"}) {
        library_.find(init_, "hipInit");
        library_.find(runtime_version_, "hipRuntimeGetVersion");
        library_.find(device_count_, "hipGetDeviceCount");
        library_.find(properties_, "hipGetDevicePropertiesR0600");
        library_.find(get_device_, "hipGetDevice");
        library_.find(set_device_, "hipSetDevice");
        library_.find(module_load_, "hipModuleLoadData");
        library_.find(module_function_, "hipModuleGetFunction");
        library_.find(launch_, "hipModuleLaunchKernel");
        library_.find(error_name_, "hipGetErrorName");
        library_.find(error_string_, "hipGetErrorString");
        library_.find(last_error_, "hipGetLastError");
        library_.find_optional(exchange_mode_, "hipThreadExchangeStreamCaptureMode");
        check(init_(0), "hipInit");
        check(device_count_(&count_), "hipGetDeviceCount");
    }

    std::string version() const override {
        int version = 0;
        check(runtime_version_(&version), "hipRuntimeGetVersion");
        int major = version / 10000000, minor = version / 100000 % 100;
        return "a driver for ROCm " + std::to_string(major) + "." + std::to_string(minor);
    }

    int device_count() const override { return count_; }

    Device device(int index) const override {
        std::vector<char> properties(PROPERTIES_BYTES);
        check(properties_(properties.data(), index), "hipGetDevicePropertiesR0600");
        Device found{"", 0};
        // The offset of the architecture differs between versions, but no other field begins with "gfx". The
        // marketing name comes first and is skipped.
        for (size_t i = NAME_BYTES; i + 4 < properties.size() && found.arch.empty(); i++) {
            if (std::memcmp(&properties[i], "gfx", 3) != 0) continue;
            std::string name(&properties[i], strnlen(&properties[i], properties.size() - i));
            found.arch = name.substr(0, name.find(':'));
        }
        if (found.arch.empty()) throw DriverError("hipGetDevicePropertiesR0600 names no gfx architecture");
        std::memcpy(&found.multiprocessors, &properties[MULTIPROCESSORS_OFFSET], sizeof(int));
        // An implausible count is no error: it only decides how work is split.
        if (found.multiprocessors < 1 || found.multiprocessors > 4096) found.multiprocessors = 32;
        return found;
    }

    Module load(int device, const void* image) const override {
        Current current(*this, device);
        Relaxed relaxed(*this);
        Module module = nullptr;
        check(module_load_(&module, image), "hipModuleLoadData");
        return module;
    }

    Function function(int device, Module module, const char* name) const override {
        Current current(*this, device);
        Relaxed relaxed(*this);
        Function function = nullptr;
        check(module_function_(&function, module, name), "hipModuleGetFunction");
        return function;
    }

    // No limit to raise: every kernel may use all 64 KB.
    void allow_shared(int, Function, unsigned) const override {}

    void launch(int device, Function function, const Grid& grid, void* stream, const void* params) const override {
        Current current(*this, device);
        void* arguments[] = {const_cast<void*>(params)};
        check(launch_(function, grid.x, grid.y, grid.z, grid.threads, 1, 1, grid.shared, stream, arguments, nullptr),
              "hipModuleLaunchKernel");
    }

private:
    // Makes the device current while in scope.
    class Current {
    public:
        Current(const HipDriver& hip, int device) : hip_(hip), before_(device) {
            hip.check(hip.get_device_(&before_), "hipGetDevice");
            changed_ = before_ != device;
            if (changed_) hip.check(hip.set_device_(device), "hipSetDevice");
        }
        ~Current() {
            if (changed_) hip_.set_device_(before_);
        }
        Current(const Current&) = delete;
        Current& operator=(const Current&) = delete;

    private:
        const HipDriver& hip_;
        int before_;
        bool changed_;
    };

    // Loading may allocate, which a stream capture on any thread forbids unless this thread's mode is relaxed. The
    // graph does not record it.
    class Relaxed {
    public:
        explicit Relaxed(const HipDriver& hip) : hip_(hip) {
            if (hip.exchange_mode_) hip.check(hip.exchange_mode_(&mode_), "hipThreadExchangeStreamCaptureMode");
        }
        ~Relaxed() {
            if (hip_.exchange_mode_) hip_.exchange_mode_(&mode_);
        }
        Relaxed(const Relaxed&) = delete;
        Relaxed& operator=(const Relaxed&) = delete;

    private:
        const HipDriver& hip_;
        int mode_ = CAPTURE_RELAXED;  // after the constructor the previous mode
    };

    void check(hipError result, const char* call) const {
        if (result == 0) return;
        // Clears the sticky error, which torch would otherwise report after its own next launch.
        last_error_();
        const char *name = error_name_(result), *text = error_string_(result);
        throw DriverError(std::string(call) + " failed: " + (name ? name : std::to_string(result)) +
                          (text ? std::string(" (") + text + ")" : ""));
    }

    SharedLibrary library_;
    int count_ = 0;

    hipError (*init_)(unsigned);
    hipError (*runtime_version_)(int*);
    hipError (*device_count_)(int*);
    hipError (*properties_)(void*, int);
    hipError (*get_device_)(int*);
    hipError (*set_device_)(int);
    hipError (*module_load_)(Module*, const void*);
    hipError (*module_function_)(Function*, Module, const char*);
    hipError (*launch_)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**,
                        void**);
    const char* (*error_name_)(hipError);
    const char* (*error_string_)(hipError);
    hipError (*last_error_)();
    hipError (*exchange_mode_)(int*);
};

std::unique_ptr<Driver> open() { return std::make_unique<HipDriver>(); }

int match(const std::string& have, const std::string& want) { return have == want; }

}  // namespace

extern const Vendor ROCM;
const Vendor ROCM = {gpu::Hip::NAME, &open, gpu::Hip::TILES, &match};

}  // namespace openmythos::runtime
