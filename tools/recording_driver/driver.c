// Has the interface of libcuda.so.1 (with -DFAKE_CUDA) or libamdhip64.so (with -DFAKE_HIP), and records every call. Any
// call can be made to fail, devices and their architectures are invented, and a launch calls back into the test. With
// -DFAKE_SILENT it records nothing and never fails, so that only the caller's cost is measured.

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#ifdef FAKE_WITHOUT_FUNCTION
#define cuModuleGetFunction fake_other_name
#define hipModuleGetFunction fake_other_name
#endif

#define EXPORT __attribute__((visibility("default")))
#define LOG_BYTES (1 << 20)

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char text[LOG_BYTES];
static size_t used;
static char failing[64];
static int fail_code, fail_after;
#ifdef FAKE_CUDA
#define ARCH "sm_90"
#else
#define ARCH "gfx1151"
#endif
static char archs[8][64] = {ARCH, ARCH};
static int devices = 2;
static int multiprocessors = 4;

typedef void (*launch_callback)(const char* kernel, unsigned gx, unsigned gy, unsigned gz, unsigned threads,
                                unsigned shared, void* stream, const void* params);
static launch_callback on_launch;

typedef struct {
    int device;
    const char* image;
} module;
typedef struct {
    module* of;
    char name[128];
} function;
static module modules[256];
static function functions[1024];
static int module_count, function_count;
static _Thread_local int current_device;

EXPORT void fake_reset(void) { used = 0, text[0] = 0, failing[0] = 0, on_launch = 0; }
EXPORT const char* fake_calls(void) { return text; }
// The call fails with this code after `after` successes.
EXPORT void fake_fail(const char* call, int code, int after) {
    snprintf(failing, sizeof failing, "%s", call);
    fail_code = code, fail_after = after;
}
EXPORT void fake_devices(int count, const char* arch, int processors) {
    devices = count, multiprocessors = processors;
    for (int i = 0; i < 8; i++) snprintf(archs[i], sizeof archs[i], "%s", arch);
}
EXPORT void fake_on_launch(launch_callback callback) { on_launch = callback; }

static int call(const char* name, const char* format, ...) {
#ifdef FAKE_SILENT
    (void)name, (void)format;
    return 0;
#endif
    pthread_mutex_lock(&mutex);
    int n = snprintf(text + used, LOG_BYTES - used, "%s ", name);
    if (n > 0 && used + n < LOG_BYTES) used += n;
    va_list list;
    va_start(list, format);
    n = vsnprintf(text + used, LOG_BYTES - used, format, list);
    va_end(list);
    if (n >= 0 && used + n + 1 < LOG_BYTES) used += n, text[used++] = '\n', text[used] = 0;
    int result = strcmp(name, failing) == 0 && fail_after-- <= 0 ? fail_code : 0;
    pthread_mutex_unlock(&mutex);
    return result;
}

static int load(void** out, const char* image, const char* name) {
    int failed = call(name, "device %d", current_device);
    if (failed) return failed;
    pthread_mutex_lock(&mutex);
    module* m = &modules[module_count++ % 256];
    pthread_mutex_unlock(&mutex);
    m->device = current_device, m->image = image;
    *out = m;
    return 0;
}

static int get_function(void** out, module* of, const char* wanted, const char* name) {
    int failed = call(name, "%s", wanted);
    if (failed) return failed;
    pthread_mutex_lock(&mutex);
    function* f = &functions[function_count++ % 1024];
    pthread_mutex_unlock(&mutex);
    f->of = of;
    snprintf(f->name, sizeof f->name, "%s", wanted);
    *out = f;
    return 0;
}

static int start(function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                 unsigned shared, void* stream, void** params, const char* name) {
    int failed = call(name, "%s grid %u %u %u block %u %u %u shared %u stream %p device %d", f->name, gx, gy, gz, bx,
                      by, bz, shared, stream, current_device);
    if (failed) return failed;
    if (f->of->device != current_device) return 201;
    if (on_launch) on_launch(f->name, gx, gy, gz, bx, shared, stream, params[0]);
    return 0;
}

#ifdef FAKE_CUDA

static char contexts[8];
static _Thread_local int depth;  // of the stack of contexts

EXPORT int cuInit(unsigned flags) { return call("cuInit", "%u", flags); }
EXPORT int cuDriverGetVersion(int* version) { return *version = 13000, call("cuDriverGetVersion", ""); }
EXPORT int cuDeviceGetCount(int* count) { return *count = devices, call("cuDeviceGetCount", ""); }
EXPORT int cuDeviceGet(int* device, int index) { return *device = index, call("cuDeviceGet", "%d", index); }
EXPORT int cuDeviceGetAttribute(int* value, int which, int device) {
    int number = 0;
    sscanf(archs[device], "sm_%d", &number);
    *value = which == 75 ? number / 10 : which == 76 ? number % 10 : which == 16 ? multiprocessors : -1;
    return call("cuDeviceGetAttribute", "%d %d", which, device);
}
EXPORT int cuDevicePrimaryCtxRetain(void** context, int device) {
    *context = &contexts[device];
    return call("cuDevicePrimaryCtxRetain", "%d", device);
}
EXPORT int cuCtxGetCurrent(void** context) {
    *context = depth ? (void*)&contexts[current_device] : 0;
    return call("cuCtxGetCurrent", "");
}
EXPORT int cuCtxPushCurrent_v2(void* context) {
    int failed = call("cuCtxPushCurrent", "%d", (int)((char*)context - contexts));
    if (!failed) current_device = (char*)context - contexts, depth++;
    return failed;
}
EXPORT int cuCtxPopCurrent_v2(void** context) {
    *context = &contexts[current_device], depth--;
    return call("cuCtxPopCurrent", "");
}
EXPORT int cuModuleLoadData(void** out, const void* image) { return load(out, image, "cuModuleLoadData"); }
EXPORT int cuModuleGetFunction(void** out, void* of, const char* name) {
    return get_function(out, of, name, "cuModuleGetFunction");
}
EXPORT int cuFuncSetAttribute(void* f, int which, int value) {
    return call("cuFuncSetAttribute", "%s %d %d", ((function*)f)->name, which, value);
}
EXPORT int cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, void* stream, void** params, void** extra) {
    (void)extra;
    return start(f, gx, gy, gz, bx, by, bz, shared, stream, params, "cuLaunchKernel");
}
EXPORT int cuGetErrorName(int code, const char** name) {
    return *name = code == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : code == 999 ? 0 : "CUDA_ERROR_FAKE", 0;
}
EXPORT int cuGetErrorString(int code, const char** name) { return *name = code == 999 ? 0 : "invented for a test", 0; }
EXPORT int cuThreadExchangeStreamCaptureMode(int* mode) {
    static _Thread_local int now;
    int before = now;
    now = *mode, *mode = before;
    return call("cuThreadExchangeStreamCaptureMode", "%d", now);
}

#else

EXPORT int hipInit(unsigned flags) { return call("hipInit", "%u", flags); }
EXPORT int hipRuntimeGetVersion(int* version) { return *version = 70226015, call("hipRuntimeGetVersion", ""); }
EXPORT int hipGetDeviceCount(int* count) { return *count = devices, call("hipGetDeviceCount", ""); }
EXPORT int hipGetDevicePropertiesR0600(char* p, int device) {
    memset(p, 0, 1472);
    strcpy(p, "gfx is not how a name begins");
    memcpy(p + 388, &multiprocessors, sizeof(int));
    snprintf(p + 1160, 256, "%s%s", archs[device], strncmp(archs[device], "gfx", 3) ? "" : ":sramecc-:xnack-");
    return call("hipGetDeviceProperties", "%d", device);
}
EXPORT int hipGetDevice(int* device) { return *device = current_device, call("hipGetDevice", ""); }
EXPORT int hipSetDevice(int device) {
    int failed = call("hipSetDevice", "%d", device);
    if (!failed) current_device = device;
    return failed;
}
EXPORT int hipModuleLoadData(void** out, const void* image) { return load(out, image, "hipModuleLoadData"); }
EXPORT int hipModuleGetFunction(void** out, void* of, const char* name) {
    return get_function(out, of, name, "hipModuleGetFunction");
}
EXPORT int hipModuleLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                                 unsigned shared, void* stream, void** params, void** extra) {
    (void)extra;
    return start(f, gx, gy, gz, bx, by, bz, shared, stream, params, "hipModuleLaunchKernel");
}
EXPORT const char* hipGetErrorName(int code) {
    return code == 209 ? "hipErrorNoBinaryForGpu" : code == 999 ? 0 : "hipErrorFake";
}
EXPORT const char* hipGetErrorString(int code) { return code == 999 ? 0 : "invented for a test"; }
EXPORT int hipGetLastError(void) { return call("hipGetLastError", ""); }
EXPORT int hipThreadExchangeStreamCaptureMode(int* mode) {
    static _Thread_local int now;
    int before = now;
    now = *mode, *mode = before;
    return call("hipThreadExchangeStreamCaptureMode", "%d", now);
}

#endif
