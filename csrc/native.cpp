#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "cpu/cpu_features.h"

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
    return info;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "What the native library was built with, and what this CPU can run.";
    m.def("build_info", &build_info,
          "Version, compiler, oldest torch that the op library supports, ISA variants built.");
    m.def("cpu_features", &cpu_features, "Instruction sets of this CPU, as far as the kernels care.");
    m.def("isa_variants", &isa_variants, "ISA variants that this CPU can run, best first.");
}
