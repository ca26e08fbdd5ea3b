#include "mla_attention/softmax.h"

namespace openmythos::cpu::OPENMYTHOS_ISA {

void mla_attention(const Threads& threads, const MlaArgs& args) {
    if (args.b == 0 || args.t == 0 || args.h == 0) return;
    args.absorbed ? absorbed_attention(threads, args) : decompressed_attention(threads, args);
}

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
