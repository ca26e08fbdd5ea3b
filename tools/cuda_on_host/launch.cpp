// The kernels of one .cu file, as __init__.py rewrote it, and a function that launches them.

#include "shim.h"

#include SOURCE

using Args = openmythos::ARGS;

static void (*kernel)(Args);
static Args arguments;

extern "C" __attribute__((visibility("default"))) void host_launch(void* function, unsigned x, unsigned y, unsigned z,
                                                                   unsigned threads, const void* params) {
    kernel = reinterpret_cast<void (*)(Args)>(function);
    std::memcpy(&arguments, params, sizeof(arguments));
    host::body = [] { kernel(arguments); };
    blockDim.x = threads;
    for (blockIdx.z = 0; blockIdx.z < z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < x; blockIdx.x++) host::run_block(threads);
}
