#pragma once

#include "../../linear/args.h"
#include "../../loop_step/args.h"
#include "../../mla_attention/args.h"
#include "../../moe/args.h"
#include "../../rms_norm/args.h"
#include "../../rope/args.h"

// The contract between the registrations and the kernels of one instruction set. Plain data only: this header is
// read by translation units with different -m flags, so it may not emit a single function.

namespace openmythos::cpu {

struct Threads {
    int64_t count;
    void (*run)(int64_t workers, void (*body)(void* context, int64_t worker), void* context);
    // One block per call, 64-byte aligned, owned by the calling thread and valid until its next request.
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

// Best first, ending with an entry whose name is null; only those that this build has and this CPU can run.
const Variant* variants();
// The variant in use. Its choice is made once, from OPENMYTHOS_CPU_ISA or else the best; throws when that is invalid.
const Variant& current_variant();
void set_variant(const char* name);

}  // namespace openmythos::cpu
