#pragma once

#include <torch/csrc/stable/ops.h>

#include <string>

#include "../runtime/runtime.h"
#include "checks.h"
#include "cpu/threads.h"

// How the binding of an op runs its kernels.

namespace openmythos {

runtime::Runtime& gpu_runtime();

// On torch's current stream of the tensors' device.
void launch(const Checks& check, const runtime::Launch& launch, const void* args);

// Raises the reason why no kernel runs on the tensors' device.
void require_device(const Checks& check);

template <auto kernel, class Args>
void run_on_cpu([[maybe_unused]] const Args& args) {
#ifndef OPENMYTHOS_RECORDING
    cpu::Workspace workspace;
    (cpu::current_variant().kernels->*kernel)(workspace.threads, args);
#endif
}

// What `check` throws, or "". A refusal is rare, so the exception costs nothing that counts.
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
