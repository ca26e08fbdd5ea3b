#include "grouped_gemm.h"
#include "grouped_sort.h"

// The experts of many rows: sort slots by expert, gate and up with SwiGLU, down, and the sum over each row's slots.

namespace openmythos::gpu {

OPENMYTHOS_KERNEL(SORT_THREADS) openmythos_moe_grouped_count(MoeGroupedArgs p) { count_slots(p); }
OPENMYTHOS_KERNEL(SORT_THREADS) openmythos_moe_grouped_place(MoeGroupedArgs p) { place_slots(p); }

#define OPENMYTHOS_MOE_GROUPED(name, T)                                          \
    OPENMYTHOS_KERNEL_RESIDENT(MOE_BLOCK_THREADS, RESIDENT_BLOCKS)               \
    openmythos_moe_grouped_up_##name(MoeGroupedArgs p) { grouped_up<T>(p); }     \
    OPENMYTHOS_KERNEL_RESIDENT(MOE_BLOCK_THREADS, RESIDENT_BLOCKS)               \
    openmythos_moe_grouped_down_##name(MoeGroupedArgs p) { grouped_down<T>(p); } \
    OPENMYTHOS_KERNEL(MOE_BLOCK_THREADS) openmythos_moe_grouped_sum_##name(MoeGroupedArgs p) { sum_slots<T>(p); }

OPENMYTHOS_MOE_GROUPED(bf16, bf16)
OPENMYTHOS_MOE_GROUPED(f16, f16)

}  // namespace openmythos::gpu
