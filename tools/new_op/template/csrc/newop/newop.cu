#include "../core/gpu/rows.h"
#include "args.h"

// One block per row; a thread copies eight columns at a time.

namespace openmythos::gpu {

constexpr int NEWOP_THREADS = 1024;

template <class Row>
OPENMYTHOS_DEVICE void newop(const NewOpArgs& p) {
    const int64_t n = block_index();
    Row x = Row::of(p.x, n), out = Row::of(p.out, n);
    for (int i = thread_index() * VEC; i < p.d; i += block_threads() * VEC) {
        float values[VEC];
        x.load(i, p.d - i, values);
        out.store(i, p.d - i, values);
    }
}

OPENMYTHOS_KERNEL(NEWOP_THREADS) openmythos_newop_f32(NewOpArgs p) { newop<FastRow<float>>(p); }
OPENMYTHOS_KERNEL(NEWOP_THREADS) openmythos_newop_bf16(NewOpArgs p) { newop<FastRow<bf16>>(p); }
OPENMYTHOS_KERNEL(NEWOP_THREADS) openmythos_newop_f16(NewOpArgs p) { newop<FastRow<f16>>(p); }
OPENMYTHOS_KERNEL(NEWOP_THREADS) openmythos_newop_any(NewOpArgs p) { newop<AnyRow>(p); }

}  // namespace openmythos::gpu
