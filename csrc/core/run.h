#pragma once

#include <torch/csrc/stable/ops.h>

#include <string>

#include "../runtime/runtime.h"
#include "checks.h"
#include "cpu/threads.h"

// Running kernels from the binding of an op.

namespace openmythos {

runtime::Runtime& gpu_runtime();

// Launches on torch's current stream of the tensors' device.
void launch(const Checks& check, const runtime::Launch& launch, const void* args);

// Throws the reason if no kernel can run on the tensors' device.
void require_device(const Checks& check);

template <auto kernel, class Args>
void run_on_cpu([[maybe_unused]] const Args& args) {
#ifndef OPENMYTHOS_RECORDING
    cpu::Workspace workspace;
    (cpu::current_variant().kernels->*kernel)(workspace.threads, args);
#endif
}

// What `check` throws, or "". Refusals are rare, so the cost of the exception does not matter.
template <class Check>
std::string reason_of(const Check& check) {
    try {
        check();
    } catch (const std::exception& error) {
        return error.what();
    }
    return "";
}

}  // namespace openmythos
