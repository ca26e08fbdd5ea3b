#pragma once

// AMD: what device code needs beyond C++, in compiler built-ins only, since ROCm's device libraries need not be
// installed. See vendor.h.

#ifndef __device__
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#endif

#include "../element.h"

// Device symbols cannot be interposed, so the compiler may inline across them.
#define OPENMYTHOS_KERNEL(threads) extern "C" __global__ __attribute__((amdgpu_flat_work_group_size(1, threads))) void
// The compiler chooses occupancy by itself.
#define OPENMYTHOS_KERNEL_RESIDENT(threads, blocks) OPENMYTHOS_KERNEL(threads)

namespace openmythos::gpu {

using Vendor = Hip;

// ---- threads ----------------------------------------------------------------------------------------------------

OPENMYTHOS_DEVICE int thread_index() { return __builtin_amdgcn_workitem_id_x(); }
OPENMYTHOS_DEVICE int block_threads() { return __builtin_amdgcn_workgroup_size_x(); }
OPENMYTHOS_DEVICE int block_index() { return __builtin_amdgcn_workgroup_id_x(); }
OPENMYTHOS_DEVICE int block_index_y() { return __builtin_amdgcn_workgroup_id_y(); }
OPENMYTHOS_DEVICE int block_index_z() { return __builtin_amdgcn_workgroup_id_z(); }
OPENMYTHOS_DEVICE void sync_block() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
OPENMYTHOS_DEVICE void sync_wave() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
    __builtin_amdgcn_wave_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}
// A value that all lanes of a wave share, moved to a scalar register.
OPENMYTHOS_DEVICE int uniform(int x) { return __builtin_amdgcn_readfirstlane(x); }

// The value of lane `lane ^ MASK`.
template <int MASK>
OPENMYTHOS_DEVICE float from_lane_xor(float x) {
    static_assert(MASK > 0 && MASK < Vendor::WAVE);
    int bits = __builtin_bit_cast(int, x);
    if constexpr ((MASK & 16) != 0) {
        bits = __builtin_amdgcn_permlanex16(bits, bits, 0x76543210, 0xfedcba98, false, false);
        // clang 19 sinks the exchange into a branch that alone uses the result, where the other lanes are inactive.
        asm volatile("" : "+v"(bits));
    }
    // row_xmask: a register move on RDNA, where a shuffle through LDS would take tens of cycles.
    if constexpr ((MASK & 15) != 0) bits = __builtin_amdgcn_update_dpp(0, bits, 0x160 + (MASK & 15), 0xf, 0xf, true);
    return __builtin_bit_cast(float, bits);
}

// Bit l is x of lane l. All lanes of the wave must take part.
OPENMYTHOS_DEVICE uint32_t wave_ballot(bool x) { return __builtin_amdgcn_ballot_w32(x); }

// ---- numerics ---------------------------------------------------------------------------------------------------

OPENMYTHOS_DEVICE float to_float(f16 x) { return float(__builtin_bit_cast(_Float16, x.bits)); }

template <>
OPENMYTHOS_DEVICE bf16 from_float<bf16>(float x) {
    uint32_t bits = __builtin_bit_cast(uint32_t, x);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return {uint16_t(x != x ? bits >> 16 | 0x40 : rounded)};
}
template <>
OPENMYTHOS_DEVICE f16 from_float<f16>(float x) {
    return {__builtin_bit_cast(uint16_t, _Float16(x))};
}

// Two 16-bit elements in one register, the first in its lower half.
template <class T>
OPENMYTHOS_DEVICE uint32_t pack2(float low, float high) {
    return from_float<T>(low).bits | uint32_t(from_float<T>(high).bits) << 16;
}

// The same for values from 0 to 1; NaN need not be kept.
template <class T>
OPENMYTHOS_DEVICE uint32_t pack2_probabilities(float low, float high) {
    if constexpr (__is_same(T, bf16))
        return __builtin_amdgcn_perm(__builtin_bit_cast(uint32_t, high) + 0x8000,
                                     __builtin_bit_cast(uint32_t, low) + 0x8000, 0x07060302);
    return pack2<T>(low, high);
}

OPENMYTHOS_DEVICE float inverse_sqrt(float x) { return __builtin_amdgcn_rsqf(x); }

// 2^x and log2(x) to about one unit in the last place.
OPENMYTHOS_DEVICE float fast_exp2(float x) { return __builtin_amdgcn_exp2f(x); }
OPENMYTHOS_DEVICE float fast_log2(float x) { return __builtin_amdgcn_logf(x); }

// ---- the optimiser ----------------------------------------------------------------------------------------------

// Hides x from the optimiser, so that derived values are recomputed instead of kept in registers.
OPENMYTHOS_DEVICE int opaque(int x) {
    asm("" : "+v"(x));
    return x;
}
// The same, and derived values are recomputed in every iteration of a loop.
OPENMYTHOS_DEVICE int opaque_in_loop(int x) {
    asm volatile("" : "+v"(x));
    return x;
}
// No read of x moves above this, and no write to it below.
OPENMYTHOS_DEVICE void pin(float& x) { asm volatile("" : "+v"(x)); }
// No instruction moves across this: the scheduler would hoist every load and run out of registers.
OPENMYTHOS_DEVICE void scheduling_barrier() { __builtin_amdgcn_sched_barrier(0); }

// ---- memory -----------------------------------------------------------------------------------------------------

// The compiler cannot know that pointers in a struct are global, and would use slower flat instructions.
typedef uint32_t words4 __attribute__((vector_size(16)));
typedef __attribute__((address_space(1))) words4 global_words4;
typedef __attribute__((address_space(1))) int32_t global_int32;

// Global load of data that this block reads once: non-temporal, so that caches keep what blocks share.
OPENMYTHOS_DEVICE Words load_once(const void* p) {
    return __builtin_bit_cast(Words, __builtin_nontemporal_load((const global_words4*)p));
}
// Global load through the first-level cache.
OPENMYTHOS_DEVICE Words load_cached(const void* p) { return __builtin_bit_cast(Words, *(const global_words4*)p); }

// Relaxed, device scope.
OPENMYTHOS_DEVICE void atomic_add(int32_t* p, int32_t x) {
    __hip_atomic_fetch_add((global_int32*)p, x, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}

// The first address at or after p where shared tiles may begin.
OPENMYTHOS_DEVICE uint16_t* align_tiles(Words* p) { return reinterpret_cast<uint16_t*>(p); }

// A thread's COUNT copies of 16 bytes from global to shared memory, through registers. issue() starts the i-th load;
// commit() stores it to shared memory.
template <int COUNT>
struct AsyncCopy {
    Words words[COUNT];
    // Writes zeros unless `inside`; `from` must be a valid address even then.
    OPENMYTHOS_DEVICE void issue(int i, uint16_t*, const void* from, bool inside) {
        words[i] = inside ? load_cached(from) : Words{};
    }
    OPENMYTHOS_DEVICE void commit(int i, uint16_t* to) const { store_words(to, words[i]); }
};

// Empty: commit() leaves nothing pending.
OPENMYTHOS_DEVICE void commit_copy_group() {}
template <int PENDING>
OPENMYTHOS_DEVICE void wait_copy_groups() {
    sync_block();
}

}  // namespace openmythos::gpu
