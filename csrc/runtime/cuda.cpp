#include <cstdio>
#include <mutex>
#include <vector>

#include "driver.h"
#include "shared_library.h"

namespace openmythos::runtime {

namespace {

// The driver's own names and values (CUDA Driver API, stable since CUDA 11).
using CUresult = int;
using CUdevice = int;
using CUcontext = struct CUctx_st*;
constexpr int MULTIPROCESSOR_COUNT = 16, CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76;
constexpr int MAX_DYNAMIC_SHARED_SIZE_BYTES = 8;
constexpr int CAPTURE_RELAXED = 2;

class Cuda final : public Driver {
public:
    Cuda() : library_("libcuda.so", {"libcuda.so.1"}) {
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

    const char* vendor() const override { return "cuda"; }

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

    // Where the driver loads lazily, it is here that it does.
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
    // Makes the device's primary context, which is the one torch uses, current for a while.
    class Current {
    public:
        Current(const Cuda& cuda, int device) : cuda_(cuda) {
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
        const Cuda& cuda_;
        bool pushed_;
    };

    // Loading may allocate, which a capture on this or another thread would forbid. It is no part of the graph.
    class Relaxed {
    public:
        explicit Relaxed(const Cuda& cuda) : cuda_(cuda) {
            if (cuda.exchange_mode_) cuda.check(cuda.exchange_mode_(&mode_), "cuThreadExchangeStreamCaptureMode");
        }
        ~Relaxed() {
            if (cuda_.exchange_mode_) cuda_.exchange_mode_(&mode_);
        }
        Relaxed(const Relaxed&) = delete;
        Relaxed& operator=(const Relaxed&) = delete;

    private:
        const Cuda& cuda_;
        int mode_ = CAPTURE_RELAXED;  // then what it was before
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

}  // namespace

std::unique_ptr<Driver> open_cuda() { return std::make_unique<Cuda>(); }

}  // namespace openmythos::runtime
