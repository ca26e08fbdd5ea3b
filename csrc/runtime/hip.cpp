#include <cstring>
#include <vector>

#include "driver.h"
#include "shared_library.h"

namespace openmythos::runtime {

namespace {

using hipError = int;
constexpr int CAPTURE_RELAXED = 2;
// hipDeviceProp_tR0600 takes less; how much depends on the version.
constexpr size_t PROPERTIES_BYTES = 16384;
constexpr size_t MULTIPROCESSORS_AT = 388, FIRST_FIELD_AFTER_NAME = 256;

class Hip final : public Driver {
public:
    Hip()
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

    const char* vendor() const override { return "rocm"; }

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
        // The struct grew between versions. Its architecture is the only field that begins with "gfx", so it is found
        // by its content; the marketing name is skipped.
        for (size_t i = FIRST_FIELD_AFTER_NAME; i + 4 < properties.size() && found.arch.empty(); i++) {
            if (std::memcmp(&properties[i], "gfx", 3) != 0) continue;
            std::string name(&properties[i], strnlen(&properties[i], properties.size() - i));
            found.arch = name.substr(0, name.find(':'));
        }
        if (found.arch.empty()) throw DriverError("hipGetDevicePropertiesR0600 names no gfx architecture");
        std::memcpy(&found.multiprocessors, &properties[MULTIPROCESSORS_AT], sizeof(int));
        // Only a hint for how to share out rows.
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

    // A workgroup may have all 64 KB without asking.
    void allow_shared(int, Function, unsigned) const override {}

    void launch(int device, Function function, const Grid& grid, void* stream, const void* params) const override {
        Current current(*this, device);
        void* arguments[] = {const_cast<void*>(params)};
        check(launch_(function, grid.x, grid.y, grid.z, grid.threads, 1, 1, grid.shared, stream, arguments, nullptr),
              "hipModuleLaunchKernel");
    }

private:
    class Current {
    public:
        Current(const Hip& hip, int device) : hip_(hip), before_(device) {
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
        const Hip& hip_;
        int before_;
        bool changed_;
    };

    // Loading may allocate, which a capture on this or another thread would forbid. It is no part of the graph.
    class Relaxed {
    public:
        explicit Relaxed(const Hip& hip) : hip_(hip) {
            if (hip.exchange_mode_) hip.check(hip.exchange_mode_(&mode_), "hipThreadExchangeStreamCaptureMode");
        }
        ~Relaxed() {
            if (hip_.exchange_mode_) hip_.exchange_mode_(&mode_);
        }
        Relaxed(const Relaxed&) = delete;
        Relaxed& operator=(const Relaxed&) = delete;

    private:
        const Hip& hip_;
        int mode_ = CAPTURE_RELAXED;  // then what it was before
    };

    void check(hipError result, const char* call) const {
        if (result == 0) return;
        // The error is reported here; torch must not find it after its own next launch.
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

}  // namespace

std::unique_ptr<Driver> open_hip() { return std::make_unique<Hip>(); }

}  // namespace openmythos::runtime
