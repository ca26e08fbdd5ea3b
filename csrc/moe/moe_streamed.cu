#include "streamed_fma.h"
#include "streamed_mma.h"

// out[n] = sum over j of weights[n, j] down_e(silu(gate_e x_n) * up_e x_n) with e = ids[n, j], plus the shared experts,
// for 1 to 16 rows: two launches that stream each needed weight once, 3 D I elements per distinct expert. There is no
// sort, and the order of every sum is fixed.

namespace openmythos::gpu {

// The second launch has few blocks, and all should be resident at once: a partial last round of blocks would leave
// memory bandwidth unused.
#define OPENMYTHOS_MOE_FMA(name, Data, rows, hidden, columns)                                           \
    OPENMYTHOS_KERNEL_RESIDENT(VECTOR_THREADS, 1) openmythos_moe_streamed_up_##name(MoeExpertsArgs p) { \
        streamed_up_fma<Data, rows, hidden>(p);                                                         \
    }                                                                                                   \
    OPENMYTHOS_KERNEL_RESIDENT(VECTOR_THREADS, rows == 1 ? 4 : 2)                                       \
    openmythos_moe_streamed_down_##name(MoeExpertsArgs p) { streamed_down_fma<Data, rows, columns>(p); }
#define OPENMYTHOS_MOE_MMA(name, T)                                                                     \
    OPENMYTHOS_KERNEL_RESIDENT(UP_THREADS, 1) openmythos_moe_streamed_up_##name(MoeExpertsArgs p) {     \
        streamed_up_mma<T>(p);                                                                          \
    }                                                                                                   \
    OPENMYTHOS_KERNEL_RESIDENT(DOWN_THREADS, 1) openmythos_moe_streamed_down_##name(MoeExpertsArgs p) { \
        streamed_down_mma<T>(p);                                                                        \
    }

OPENMYTHOS_MOE_FMA(f32_rows1, Vectors<float>, 1, 2, 4)
OPENMYTHOS_MOE_FMA(bf16_rows1, Vectors<bf16>, 1, 2, 4)
OPENMYTHOS_MOE_FMA(f16_rows1, Vectors<f16>, 1, 2, 4)
OPENMYTHOS_MOE_FMA(f32_rows16, Vectors<float>, MOE_MAX_ROWS, 1, 2)
OPENMYTHOS_MOE_MMA(bf16_rows16, bf16)
OPENMYTHOS_MOE_MMA(f16_rows16, f16)
OPENMYTHOS_MOE_FMA(any, Elements, MOE_MAX_ROWS, 1, 2)

}  // namespace openmythos::gpu
