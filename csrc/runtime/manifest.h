#pragma once

#include <string>
#include <vector>

#include "vendor.h"

namespace openmythos::runtime {

// One file of device code: the kernels of one .cu file for one architecture.
struct CodeObject {
    std::string op, arch, file, sha256;
    size_t bytes;
};

// `manifest.txt` in the folder of the code objects, written by tools/code_objects.py:
//
//     openmythos code objects 1
//     vendor cuda
//     toolkit 13.0
//     object loop_step sm_90a loop_step.sm_90a.cubin 61000 <sha256>
//     kernel loop_step openmythos_loop_step_f32_rows1
struct Manifest {
    const Vendor* vendor = nullptr;
    std::string toolkit;
    std::vector<CodeObject> objects;

    // Throws std::runtime_error when the file is missing or malformed.
    static Manifest read(const std::string& folder);

    // The op's best code object for the architecture, or null if none runs there.
    const CodeObject* find(const std::string& op, const std::string& arch) const;
    // The architectures that have code, "sm_80, sm_90a".
    std::string archs() const;
};

}  // namespace openmythos::runtime
