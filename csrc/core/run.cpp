#include "run.h"

#include <dlfcn.h>

#include "../runtime/stream.h"

namespace openmythos {

namespace {

// The folder beside this library.
std::string code_objects_folder() {
    Dl_info info{};
    dladdr(reinterpret_cast<const void*>(&code_objects_folder), &info);
    std::string path = info.dli_fname ? info.dli_fname : "";
    size_t slash = path.rfind('/');
    return (slash == std::string::npos ? "." : path.substr(0, slash)) + "/gpu";
}

std::string gpu_reason(int64_t device) { return gpu_runtime().why_not(int(device)); }
std::string gpu_code() { return gpu_runtime().describe(); }

// Raise it when the arguments of an op change; openmythos/backends/library.py expects the same number, so that a
// library of another build is refused with a sentence.
int64_t interface() { return 2; }

}  // namespace

runtime::Runtime& gpu_runtime() {
    static runtime::Runtime runtime(code_objects_folder());
    return runtime;
}

void launch(const Checks& check, const runtime::Launch& launch, const void* args) {
    gpu_runtime().launch(launch, args, check.device(), runtime::current_stream(check.device()));
}

void require_device(const Checks& check) {
    if (check.on_gpu()) {
        const std::string reason = gpu_runtime().why_not(check.device());
        check.require(reason.empty(), reason);
    }
#ifndef OPENMYTHOS_RECORDING
    else
        check.require(cpu::variants()->name, "the kernels need a CPU with AVX2, FMA and F16C");
#endif
}

#ifndef OPENMYTHOS_RECORDING
namespace {

void set_isa(std::string name) { cpu::set_variant(name.c_str()); }
std::string isa() { return cpu::current_variant().name; }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(OPENMYTHOS_LIBRARY, m) {
    m.def("set_isa(str name) -> ()");
    m.def("isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(OPENMYTHOS_LIBRARY, CompositeExplicitAutograd, m) {
    m.impl("set_isa", boxed<set_isa>);
    m.impl("isa", boxed<isa>);
}
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(OPENMYTHOS_LIBRARY, m) {
    m.def("gpu_reason(int device) -> str");
    m.def("gpu_code() -> str");
    m.def("interface() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(OPENMYTHOS_LIBRARY, CompositeExplicitAutograd, m) {
    m.impl("gpu_reason", boxed<gpu_reason>);
    m.impl("gpu_code", boxed<gpu_code>);
    m.impl("interface", boxed<interface>);
}

}  // namespace openmythos
