#include "stream.h"

#include <dlfcn.h>

#include <cstdint>
#include <stdexcept>

namespace openmythos::runtime {

namespace {

// Torch's C shim, looked up at run time because which functions it has depends on torch's version.
struct TorchShim {
    int32_t (*current_stream)(int32_t, void**);
    int32_t (*native_handle)(void*, void**);
    int32_t (*delete_stream)(void*);
    int32_t (*current_cuda_stream)(int32_t, void**);

    TorchShim() {
        // Since torch 2.13 libtorch_cpu has these for any accelerator.
        find(current_stream, RTLD_DEFAULT, "aoti_torch_get_current_stream");
        find(native_handle, RTLD_DEFAULT, "torch_stream_native_handle");
        find(delete_stream, RTLD_DEFAULT, "aoti_torch_delete_stream");
        current_cuda_stream = nullptr;
        for (const char* name : {"libtorch_cuda.so", "libtorch_hip.so"}) {
            if (current_cuda_stream) break;
            // RTLD_NOLOAD: only if torch has loaded it.
            if (void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD))
                find(current_cuda_stream, library, "aoti_torch_get_current_cuda_stream");
        }
    }

    template <class F>
    static void find(F*& function, void* library, const char* name) {
        function = reinterpret_cast<F*>(dlsym(library, name));
    }
};

}  // namespace

void* current_stream(int device) {
    static const TorchShim torch;
    void* stream = nullptr;
    if (torch.current_stream && torch.native_handle && torch.delete_stream) {
        void* handle = nullptr;
        if (torch.current_stream(device, &handle) == 0) {
            int32_t failed = torch.native_handle(handle, &stream);
            torch.delete_stream(handle);
            if (!failed) return stream;
        }
    } else if (torch.current_cuda_stream && torch.current_cuda_stream(device, &stream) == 0) {
        return stream;
    }
    throw std::runtime_error("torch reports no current stream; install torch 2.11 or newer built for CUDA or ROCm.");
}

}  // namespace openmythos::runtime
