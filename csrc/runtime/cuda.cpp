#include <mutex>
#include <vector>

#include "shared_library.h"
#include "vendor.h"

namespace openmythos::runtime {

namespace {

// Names and values of the CUDA Driver API, stable since CUDA 11.
using CUresult = int;
using CUdevice = int;
using CUcontext = struct CUctx_st*;
constexpr int MULTIPROCESSOR_COUNT = 16, CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76;
constexpr int MAX_DYNAMIC_SHARED_SIZE_BYTES = 8;
constexpr int CAPTURE_RELAXED = 2;

class CudaDriver final : public Driver {
public:
    CudaDriver() : library_("libcuda.so", {"libcuda.so.1"}) {
        library_.find(init_, "cuInit");
        library_.find(driver_version_, "cuDriverGetVersion");
        library_.find(device_get_count_, "cuDeviceGetCount");
        library_.find(device_get_, "cuDeviceGet");
        library_.find(device_attribute_, "cuDeviceGetAttribute");
        library_.find(primary_retain_, "cuDevicePrimaryCtxRetain");
        library_.find(get_current_, "cuCtxGetCurrent");
        library_.find(push_current_, "cuCtxPushCurrent_v2");
        library_.find(pop_current_, "cuCtxPopCurrent_v2");
        library_.find(module_load_, "cuModuleLoadData");
        library_.find(module_function_, "cuModuleGetFunction");
        library_.find(set_attribute_, "cuFuncSetAttribute");
        library_.find(launch_, "cuLaunchKernel");
        library_.find(error_name_, "cuGetErrorName");
        library_.find(error_string_, "cuGetErrorString");
        library_.find_optional(exchange_mode_, "cuThreadExchangeStreamCaptureMode");
        check(init_(0), "cuInit");
        int count = 0;
        check(device_get_count_(&count), "cuDeviceGetCount");
        contexts_ = std::vector<CUcontext>(count);
    }

    std::string version() const override {
        int version = 0;
        check(driver_version_(&version), "cuDriverGetVersion");
        return "a driver for CUDA " + std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
    }

    int device_count() const override { return int(contexts_.size()); }

    Device device(int index) const override {
        int major = attribute(index, CAPABILITY_MAJOR), minor = attribute(index, CAPABILITY_MINOR);
        return {"sm_" + std::to_string(major) + std::to_string(minor), attribute(index, MULTIPROCESSOR_COUNT)};
    }

    Module load(int device, const void* image) const override {
        Current current(*this, device);
        Relaxed relaxed(*this);
        Module module = nullptr;
        check(module_load_(&module, image), "cuModuleLoadData");
        return module;
    }

    // With lazy loading, this call loads the code.
    Function function(int device, Module module, const char* name) const override {
        Current current(*this, device);
        Relaxed relaxed(*this);
        Function function = nullptr;
        check(module_function_(&function, module, name), "cuModuleGetFunction");
        return function;
    }

    void allow_shared(int device, Function function, unsigned bytes) const override {
        Current current(*this, device);
        Relaxed relaxed(*this);
        check(set_attribute_(function, MAX_DYNAMIC_SHARED_SIZE_BYTES, int(bytes)), "cuFuncSetAttribute");
    }

    void launch(int device, Function function, const Grid& grid, void* stream, const void* params) const override {
        Current current(*this, device);
        void* arguments[] = {const_cast<void*>(params)};
        check(launch_(function, grid.x, grid.y, grid.z, grid.threads, 1, 1, grid.shared, stream, arguments, nullptr),
              "cuLaunchKernel");
    }

private:
    // Makes the device's primary context current while in scope; torch uses the same.
    class Current {
    public:
        Current(const CudaDriver& cuda, int device) : cuda_(cuda) {
            CUcontext wanted = cuda.context(device), now = nullptr;
            cuda.check(cuda.get_current_(&now), "cuCtxGetCurrent");
            pushed_ = now != wanted;
            if (pushed_) cuda.check(cuda.push_current_(wanted), "cuCtxPushCurrent");
        }
        ~Current() {
            CUcontext popped;
            if (pushed_) cuda_.pop_current_(&popped);
        }
        Current(const Current&) = delete;
        Current& operator=(const Current&) = delete;

    private:
        const CudaDriver& cuda_;
        bool pushed_;
    };

    // Loading may allocate, which a stream capture on any thread forbids unless this thread's mode is relaxed. The
    // graph does not record it.
    class Relaxed {
    public:
        explicit Relaxed(const CudaDriver& cuda) : cuda_(cuda) {
            if (cuda.exchange_mode_) cuda.check(cuda.exchange_mode_(&mode_), "cuThreadExchangeStreamCaptureMode");
        }
        ~Relaxed() {
            if (cuda_.exchange_mode_) cuda_.exchange_mode_(&mode_);
        }
        Relaxed(const Relaxed&) = delete;
        Relaxed& operator=(const Relaxed&) = delete;

    private:
        const CudaDriver& cuda_;
        int mode_ = CAPTURE_RELAXED;  // after the constructor the previous mode
    };

    CUcontext context(int device) const {
        std::lock_guard<std::mutex> lock(mutex_);
        CUcontext& context = contexts_.at(device);
        if (!context) {
            CUdevice handle;
            check(device_get_(&handle, device), "cuDeviceGet");
            check(primary_retain_(&context, handle), "cuDevicePrimaryCtxRetain");
        }
        return context;
    }

    int attribute(int device, int which) const {
        CUdevice handle;
        int value = 0;
        check(device_get_(&handle, device), "cuDeviceGet");
        check(device_attribute_(&value, which, handle), "cuDeviceGetAttribute");
        return value;
    }

    void check(CUresult result, const char* call) const {
        if (result == 0) return;
        const char *name = nullptr, *text = nullptr;
        error_name_(result, &name);
        error_string_(result, &text);
        throw DriverError(std::string(call) + " failed: " + (name ? name : std::to_string(result)) +
                          (text ? std::string(" (") + text + ")" : ""));
    }

    SharedLibrary library_;
    mutable std::mutex mutex_;
    mutable std::vector<CUcontext> contexts_;  // by device, null until first needed

    CUresult (*init_)(unsigned);
    CUresult (*driver_version_)(int*);
    CUresult (*device_get_count_)(int*);
    CUresult (*device_get_)(CUdevice*, int);
    CUresult (*device_attribute_)(int*, int, CUdevice);
    CUresult (*primary_retain_)(CUcontext*, CUdevice);
    CUresult (*get_current_)(CUcontext*);
    CUresult (*push_current_)(CUcontext);
    CUresult (*pop_current_)(CUcontext*);
    CUresult (*module_load_)(Module*, const void*);
    CUresult (*module_function_)(Function*, Module, const char*);
    CUresult (*set_attribute_)(Function, int, int);
    CUresult (*launch_)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**,
                        void**);
    CUresult (*error_name_)(CUresult, const char**);
    CUresult (*error_string_)(CUresult, const char**);
    CUresult (*exchange_mode_)(int*);
};

std::unique_ptr<Driver> open() { return std::make_unique<CudaDriver>(); }

struct Capability {
    std::string kind;  // "sm_", "compute_"
    int major = 0, minor = 0;
    bool exact = false;  // architecture-specific: "sm_90a"
};

Capability capability(const std::string& arch) {
    Capability c;
    size_t digits = arch.find('_');
    if (digits == std::string::npos) return c;
    c.kind = arch.substr(0, digits + 1);
    int number = 0;
    size_t i = digits + 1;
    for (; i < arch.size() && arch[i] >= '0' && arch[i] <= '9' && number < 10000; i++)
        number = 10 * number + arch[i] - '0';
    c.major = number / 10, c.minor = number % 10, c.exact = i < arch.size();
    return c;
}

// Code runs on its own capability and on later minor ones, architecture-specific code ("a") only on its own, PTX on its
// own and every later capability.
int match(const std::string& have, const std::string& want) {
    if (have == want) return 1000;
    Capability a = capability(have), b = capability(want);
    if (b.kind != "sm_" || a.kind.empty()) return 0;
    if (a.kind == "sm_" && a.exact) return a.major == b.major && a.minor == b.minor ? 1001 : 0;
    if (a.kind == "sm_") return a.major == b.major && a.minor <= b.minor ? 100 + a.minor : 0;
    return 10 * a.major + a.minor <= 10 * b.major + b.minor ? 1 : 0;
}

}  // namespace

extern const Vendor CUDA;
const Vendor CUDA = {gpu::Cuda::NAME, &open, gpu::Cuda::TILES, &match};

}  // namespace openmythos::runtime
