#include "streamed_fma.h"
#include "streamed_mma.h"

// out[n] = sum over j of weights[n, j] down_e(silu(gate_e x_n) * up_e x_n) with e = ids[n, j], plus the shared experts,
// for 1 to 16 rows: two launches that read every weight that is needed once, 3 D I for each distinct expert. Nothing is
// sorted, no sum depends on timing.

namespace openmythos::gpu {

// The second launch's blocks are few: all of them have to be there at once, for the last ones alone would leave memory
// idle.
#define OPENMYTHOS_MOE_VECTORS(name, Data, rows, hidden, columns)                                                    \
    OPENMYTHOS_KERNEL_RESIDENT(VECTOR_THREADS, 1) openmythos_moe_streamed_up_##name(MoeParams p) {                   \
        vectors_up<Data, rows, hidden>(p);                                                                           \
    }                                                                                                                \
    OPENMYTHOS_KERNEL_RESIDENT(VECTOR_THREADS, rows == 1 ? 4 : 2) openmythos_moe_streamed_down_##name(MoeParams p) { \
        vectors_down<Data, rows, columns>(p);                                                                        \
    }
#define OPENMYTHOS_MOE_TILES(name, T)                                                                            \
    OPENMYTHOS_KERNEL_RESIDENT(UP_THREADS, 1) openmythos_moe_streamed_up_##name(MoeParams p) { tiles_up<T>(p); } \
    OPENMYTHOS_KERNEL_RESIDENT(DOWN_THREADS, 1) openmythos_moe_streamed_down_##name(MoeParams p) { tiles_down<T>(p); }

OPENMYTHOS_MOE_VECTORS(f32_rows1, Vectors<float>, 1, 2, 4)
OPENMYTHOS_MOE_VECTORS(bf16_rows1, Vectors<bf16>, 1, 2, 4)
OPENMYTHOS_MOE_VECTORS(f16_rows1, Vectors<f16>, 1, 2, 4)
OPENMYTHOS_MOE_VECTORS(f32_rows16, Vectors<float>, MOE_MAX_ROWS, 1, 2)
OPENMYTHOS_MOE_TILES(bf16_rows16, bf16)
OPENMYTHOS_MOE_TILES(f16_rows16, f16)
OPENMYTHOS_MOE_VECTORS(any, Elements, MOE_MAX_ROWS, 1, 2)

}  // namespace openmythos::gpu
