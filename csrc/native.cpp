#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "core/cpu/cpu_features.h"
#include "runtime/vendor.h"

namespace {

std::vector<std::string> built_variants() {
#define OPENMYTHOS_NAME(isa) #isa,
    return {OPENMYTHOS_FOR_EACH_ISA(OPENMYTHOS_NAME)};
}

std::vector<std::string> isa_variants() {
    std::vector<std::string> names;
    for (const std::string& isa : built_variants())
        if (openmythos::cpu::can_run(isa.c_str())) names.push_back(isa);
    return names;
}

std::map<std::string, bool> cpu_features() {
    auto f = openmythos::cpu::cpu_features();
    return {{"avx2", f.avx2},         {"fma", f.fma},           {"f16c", f.f16c},         {"avx512f", f.avx512f},
            {"avx512bw", f.avx512bw}, {"avx512vl", f.avx512vl}, {"avx512dq", f.avx512dq}, {"avx512bf16", f.avx512bf16}};
}

pybind11::dict build_info() {
    constexpr unsigned long long target = OPENMYTHOS_TORCH_TARGET;
    pybind11::dict info;
    info["version"] = OPENMYTHOS_VERSION;
#ifdef __clang__
    info["compiler"] = "clang " __clang_version__;
#else
    info["compiler"] = "gcc " __VERSION__;
#endif
    info["torch_target"] = std::to_string(target >> 56) + "." + std::to_string(target >> 48 & 0xff);
    info["isa_variants"] = built_variants();
    info["gpu"] = OPENMYTHOS_GPU;
    info["gpu_toolkit"] = OPENMYTHOS_GPU_TOOLKIT;
    info["gpu_archs"] = OPENMYTHOS_GPU_ARCHS;
    return info;
}

// {vendor: the driver's version and devices, or why there is none}.
std::map<std::string, std::string> gpu_devices() {
    using namespace openmythos::runtime;
    std::map<std::string, std::string> found;
    for (const Vendor* vendor : vendors()) {
        try {
            auto driver = vendor->open_driver();
            std::string text = driver->version() + ":";
            for (int i = 0; i < driver->device_count(); i++) {
                Device device = driver->device(i);
                text += (i ? ", " : " ") + device.arch + " with " + std::to_string(device.multiprocessors) +
                        " multiprocessors";
            }
            found[vendor->name] = text;
        } catch (const std::exception& error) {
            found[vendor->name] = error.what();
        }
    }
    return found;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "How the native library was built, and what this CPU and the GPU drivers support.";
    m.def("build_info", &build_info,
          "Version, compiler, oldest torch that the op library supports, ISA variants and GPU code built.");
    m.def("gpu_devices", &gpu_devices, "The driver and devices of each vendor, or why there are none: {vendor: text}.");
    m.def("cpu_features", &cpu_features, "Instruction sets of this CPU that matter to the kernels.");
    m.def("isa_variants", &isa_variants, "ISA variants that this CPU can run, best first.");
}
