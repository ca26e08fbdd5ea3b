#include "grouped_gemm.h"
#include "grouped_sort.h"

// moe for many rows: slots sorted by expert, gate and up with SwiGLU, down, and the sum over each row's slots.

namespace openmythos::gpu {

OPENMYTHOS_KERNEL(SORT_THREADS) openmythos_moe_grouped_count(MoeGroupedParams p) { sort_count(p); }
OPENMYTHOS_KERNEL(SORT_THREADS) openmythos_moe_grouped_place(MoeGroupedParams p) { sort_place(p); }

#define OPENMYTHOS_MOE_GROUPED(name, T)                                                                              \
    OPENMYTHOS_KERNEL_RESIDENT(MOE_BLOCK_THREADS, RESIDENT) openmythos_moe_grouped_up_##name(MoeGroupedParams p) {   \
        blocks_up<T>(p);                                                                                             \
    }                                                                                                                \
    OPENMYTHOS_KERNEL_RESIDENT(MOE_BLOCK_THREADS, RESIDENT) openmythos_moe_grouped_down_##name(MoeGroupedParams p) { \
        blocks_down<T>(p);                                                                                           \
    }                                                                                                                \
    OPENMYTHOS_KERNEL(MOE_BLOCK_THREADS) openmythos_moe_grouped_sum_##name(MoeGroupedParams p) { slots_sum<T>(p); }

OPENMYTHOS_MOE_GROUPED(bf16, bf16)
OPENMYTHOS_MOE_GROUPED(f16, f16)

}  // namespace openmythos::gpu
