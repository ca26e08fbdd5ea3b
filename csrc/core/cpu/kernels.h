#pragma once

#include "../../linear/args.h"
#include "../../loop_step/args.h"
#include "../../mla_attention/args.h"
#include "../../moe/args.h"
#include "../../rms_norm/args.h"
#include "../../rope/args.h"

// The interface between the bindings and the kernels of one instruction set. Plain data only: translation units with
// different -m flags include this header, so it must not emit a function.

namespace openmythos::cpu {

struct Threads {
    int64_t count;
    void (*run)(int64_t workers, void (*body)(void* context, int64_t worker), void* context);
    // Returns a 64-byte aligned block that is valid until the calling thread's next request.
    void* (*scratch)(int64_t bytes);
};

struct Kernels {
    void (*linear)(const Threads&, const LinearArgs&);
    void (*swiglu)(const Threads&, const SwigluArgs&);
    void (*rms_norm)(const Threads&, const RmsNormArgs&);
    void (*moe_route)(const Threads&, const MoeRouteArgs&);
    void (*moe_experts)(const Threads&, const MoeExpertsArgs&);
    void (*mla_absorbed)(const Threads&, const MlaArgs&);
    void (*mla_decompressed)(const Threads&, const MlaArgs&);
    void (*loop_step)(const Threads&, const LoopStepArgs&);
    void (*rope)(const Threads&, const RopeArgs&);
};

struct Variant {
    const char* name;
    const Kernels* kernels;
};

// The variants that this build has and this CPU can run, best first; the last entry has a null name.
const Variant* variants();
// The variant in use, chosen once: OPENMYTHOS_CPU_ISA, else the best. Throws if the variable is invalid.
const Variant& current_variant();
void set_variant(const char* name);

}  // namespace openmythos::cpu
