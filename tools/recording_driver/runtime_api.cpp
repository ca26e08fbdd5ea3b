// The launcher with a C interface, for ctypes and stress.cpp; without torch, so that it runs under sanitizers.

#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/runtime/runtime.h"
#include "../../csrc/runtime/sha256.h"

using openmythos::runtime::Launch;
using openmythos::runtime::Runtime;

namespace {

char* copy(const std::string& text) { return strdup(text.c_str()); }

}  // namespace

extern "C" {

void* runtime_open(const char* folder) { return new Runtime(folder); }
void runtime_close(void* runtime) { delete static_cast<Runtime*>(runtime); }
void runtime_free(char* text) { free(text); }
char* runtime_why_not(void* runtime, int device) { return copy(static_cast<Runtime*>(runtime)->why_not(device)); }
char* runtime_describe(void* runtime) { return copy(static_cast<Runtime*>(runtime)->describe()); }
char* runtime_sha256(const char* bytes, size_t count) { return copy(openmythos::runtime::sha256({bytes, count})); }

// The error, or "".
char* runtime_launch(void* runtime, const char* op, const char* kernel, unsigned grid, unsigned threads,
                     unsigned shared, int device, void* stream, const void* params) {
    try {
        Launch launch{op, kernel, {grid, 1, 1, threads, shared}};
        static_cast<Runtime*>(runtime)->launch(launch, params, device, stream);
    } catch (const std::exception& error) {
        return copy(error.what());
    }
    return copy("");
}

// Launches from several threads at once on several devices; returns the number of failures.
int runtime_launch_threads(void* runtime, const char* op, const char* const* kernels, int kernel_count, int threads,
                           int rounds) {
    std::vector<int> failed(threads);
    std::vector<std::thread> running;
    for (int t = 0; t < threads; t++) {
        running.emplace_back([&, t] {
            int params = t;
            for (int i = 0; i < rounds; i++) {
                char* error = runtime_launch(runtime, op, kernels[(i + t) % kernel_count], 1 + i, 32, i * 4096, t % 2,
                                             nullptr, &params);
                failed[t] += error[0] != 0;
                free(error);
            }
        });
    }
    for (std::thread& thread : running) thread.join();
    int all = 0;
    for (int count : failed) all += count;
    return all;
}
}
