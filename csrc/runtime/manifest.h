#pragma once

#include <string>
#include <vector>

namespace openmythos::runtime {

// One file of device code: an op's kernels for one architecture.
struct CodeObject {
    std::string op, arch, file, sha256;
    size_t bytes;
};

// What `manifest.txt` beside the code objects says. It is written by tools/code_objects.py, a line an entry:
//
//     openmythos code objects 1
//     vendor cuda
//     toolkit 13.0
//     object loop_step sm_90a loop_step.sm_90a.cubin 61000 <sha256>
//     kernel loop_step openmythos_loop_step_f32_rows1
struct Manifest {
    std::string vendor, toolkit;
    std::vector<CodeObject> objects;

    // Throws std::runtime_error with a sentence when the file is missing or not of this format.
    static Manifest read(const std::string& folder);

    // The object of the op that runs on the architecture ("sm_89", "gfx1151"), or null. A CUDA object runs on its own
    // capability and on later minor ones; one with an "a" on its own only; PTX on that of its name and all later ones.
    const CodeObject* find(const std::string& op, const std::string& arch) const;
    std::string archs() const;
};

}  // namespace openmythos::runtime
