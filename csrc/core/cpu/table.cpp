#include "kernels.h"

namespace openmythos::cpu::OPENMYTHOS_ISA {

void linear(const Threads&, const LinearArgs&);
void swiglu(const Threads&, const SwigluArgs&);
void rms_norm(const Threads&, const RmsNormArgs&);
void moe_route(const Threads&, const MoeRouteArgs&);
void moe_experts(const Threads&, const MoeExpertsArgs&);
void mla_absorbed(const Threads&, const MlaArgs&);
void mla_decompressed(const Threads&, const MlaArgs&);
void loop_step(const Threads&, const LoopStepArgs&);
void rope(const Threads&, const RopeArgs&);

extern const Kernels table;
const Kernels table = {linear,       swiglu,           rms_norm,  moe_route, moe_experts,
                       mla_absorbed, mla_decompressed, loop_step, rope};

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
