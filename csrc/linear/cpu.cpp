#include "cpu.h"
#include "scratch.h"

namespace openmythos::cpu::OPENMYTHOS_ISA {

template <class T>
static void linear_typed(const Threads& threads, const LinearArgs& args) {
    const T* x = static_cast<const T*>(args.x.data);
    Split split = split_tokens(args.n);
    int64_t group = packed_floats<T>(args.k);
    ScratchLayout layout;
    float* packed;
    const T** rows;
    float* c;
    auto divide = [&] {
        layout.used = 0;
        packed = layout.array<float>(split.groups * group);
        rows = layout.array<const T*>(args.n);
        c = layout.array<float>(threads.count * projection_scratch());
    };
    divide();
    layout.base = static_cast<char*>(threads.scratch(layout.used));
    divide();
    for (int64_t i = 0; i < args.n; i++) rows[i] = x + i * args.x.stride;
    for_tasks(threads, split.groups, [&](int64_t g, int64_t) {
        pack_group(rows + g * VL, min_of(VL, split.packed - g * VL), args.k, packed + g * group);
    });
    Tokens<T> tokens{split, packed, group, rows + split.packed};
    project(threads, tokens, static_cast<const T*>(args.weight.data), args.weight.stride, args.o, args.k,
            static_cast<T*>(args.out.data), args.out.stride, c);
}

void linear(const Threads& threads, const LinearArgs& args) {
    if (args.n == 0 || args.o == 0) return;
    args.x.type == Type::float32 ? linear_typed<float>(threads, args) : linear_typed<bf16>(threads, args);
}

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
