#include "../moe/cpu_hidden.h"
#include "cpu.h"
#include "scratch.h"

namespace openmythos::cpu::OPENMYTHOS_ISA {

// Chunks bound the scratch memory; one of this size is compute-bound, so splitting costs nothing.
constexpr int64_t CHUNK_TOKENS = 4096;

template <class T>
static void swiglu_chunk(const Threads& threads, const SwigluArgs& args, int64_t begin, int64_t n) {
    Expert<T> expert{};
    expert.gate = static_cast<const T*>(args.gate.data), expert.gate_stride = args.gate.stride;
    expert.up = static_cast<const T*>(args.up.data), expert.up_stride = args.up.stride;
    expert.rows = n;
    Split total = lay_out(&expert, 1);
    Hidden<T> hidden{};
    hidden.experts = &expert, hidden.count = hidden.owners = 1, hidden.d = args.d, hidden.i = args.i;
    ScratchLayout layout;
    float* scratch;
    int64_t per_worker = max_of(hidden_scratch(), projection_scratch());
    auto divide = [&] {
        layout.used = 0;
        hidden.x_rows = layout.array<const T*>(n);
        hidden.x_packed = layout.array<float>(total.groups * hidden.x_group());
        hidden.h_packed = layout.array<float>(total.groups * hidden.h_group());
        hidden.h_rest = layout.array<T>(total.rest * hidden.h_stride());
        hidden.h_rows = layout.array<const T*>(total.rest);
        scratch = layout.array<float>(threads.count * per_worker);
    };
    divide();
    layout.base = static_cast<char*>(threads.scratch(layout.used));
    divide();
    hidden.scratch = scratch;
    const T* x = static_cast<const T*>(args.x.data) + begin * args.x.stride;
    for (int64_t r = 0; r < n; r++) hidden.x_rows[r] = x + r * args.x.stride;
    compute_hidden(threads, hidden, &expert);
    Tokens<T> tokens{expert.split, hidden.h_packed, hidden.h_group(), hidden.h_rows};
    project(threads, tokens, static_cast<const T*>(args.down.data), args.down.stride, args.o, args.i,
            static_cast<T*>(args.out.data) + begin * args.out.stride, args.out.stride, scratch);
}

void swiglu(const Threads& threads, const SwigluArgs& args) {
    for (int64_t begin = 0; begin < args.n; begin += CHUNK_TOKENS) {
        int64_t n = min_of(CHUNK_TOKENS, args.n - begin);
        args.x.type == Type::float32 ? swiglu_chunk<float>(threads, args, begin, n)
                                     : swiglu_chunk<bf16>(threads, args, begin, n);
    }
}

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
