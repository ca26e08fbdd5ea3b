#include "vec.h"

namespace openmythos::cpu::OPENMYTHOS_ISA {

template <class T>
static void newop_typed(const Threads& threads, const NewOpArgs& args) {
    for_tasks(threads, args.n, [&](int64_t row, int64_t) {
        const T* x = static_cast<const T*>(args.x.data) + row * args.x.stride;
        T* out = static_cast<T*>(args.out.data) + row * args.out.stride;
        for (int64_t i = 0; i < args.d; i += VL) {
            const int64_t count = min_of(VL, args.d - i);
            store_upto(out + i, load_upto(x + i, count), count);
        }
    });
}

void newop(const Threads& threads, const NewOpArgs& args) {
    args.x.type == Type::float32 ? newop_typed<float>(threads, args) : newop_typed<bf16>(threads, args);
}

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
