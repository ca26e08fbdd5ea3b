#pragma once

// NVIDIA: what device code needs beyond C++, in CUDA built-ins and PTX. See vendor.h.

#include "../element.h"

#define OPENMYTHOS_KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
// Without a bound on resident blocks ptxas saves registers, and with them loads in flight, to raise occupancy.
#define OPENMYTHOS_KERNEL_RESIDENT(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define OPENMYTHOS_WGMMA 1
#endif

namespace openmythos::gpu {

using Vendor = Cuda;

// ---- threads ----------------------------------------------------------------------------------------------------

OPENMYTHOS_DEVICE int thread_index() { return int(threadIdx.x); }
OPENMYTHOS_DEVICE int block_threads() { return int(blockDim.x); }
OPENMYTHOS_DEVICE int block_index() { return int(blockIdx.x); }
OPENMYTHOS_DEVICE int block_index_y() { return int(blockIdx.y); }
OPENMYTHOS_DEVICE int block_index_z() { return int(blockIdx.z); }
OPENMYTHOS_DEVICE void sync_block() { __syncthreads(); }
OPENMYTHOS_DEVICE void sync_wave() { __syncwarp(); }
// Tells the compiler that all lanes of the wave hold the same x; nvcc does not need it.
OPENMYTHOS_DEVICE int uniform(int x) { return x; }

// The value of lane `lane ^ MASK`.
template <int MASK>
OPENMYTHOS_DEVICE float from_lane_xor(float x) {
    static_assert(MASK > 0 && MASK < Vendor::WAVE);
    return __shfl_xor_sync(0xffffffffu, x, MASK);
}

// Bit l is x of lane l. All lanes of the wave must take part.
OPENMYTHOS_DEVICE uint32_t wave_ballot(bool x) { return __ballot_sync(0xffffffffu, x); }

// ---- numerics ---------------------------------------------------------------------------------------------------

OPENMYTHOS_DEVICE float to_float(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

template <>
OPENMYTHOS_DEVICE bf16 from_float<bf16>(float x) {
    uint16_t y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return {y};
}
template <>
OPENMYTHOS_DEVICE f16 from_float<f16>(float x) {
    uint16_t y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return {y};
}

// Two 16-bit elements in one register, the first in its lower half.
template <class T>
OPENMYTHOS_DEVICE uint32_t pack2(float low, float high) {
    uint32_t y;
    if constexpr (__is_same(T, bf16))
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// The same for values from 0 to 1; NaN need not be kept.
template <class T>
OPENMYTHOS_DEVICE uint32_t pack2_probabilities(float low, float high) {
    return pack2<T>(low, high);
}

OPENMYTHOS_DEVICE float inverse_sqrt(float x) { return rsqrtf(x); }

// 2^x and log2(x) to about one unit in the last place.
OPENMYTHOS_DEVICE float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
OPENMYTHOS_DEVICE float fast_log2(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- the optimiser ----------------------------------------------------------------------------------------------

// Hides x from the optimiser, so that derived values are recomputed instead of kept in registers.
OPENMYTHOS_DEVICE int opaque(int x) {
    asm("" : "+r"(x));
    return x;
}
// The same, and derived values are recomputed in every iteration of a loop.
OPENMYTHOS_DEVICE int opaque_in_loop(int x) {
    asm volatile("" : "+r"(x));
    return x;
}
// No read of x moves above this, and no write to it below.
OPENMYTHOS_DEVICE void pin(float& x) { asm volatile("" : "+f"(x)::"memory"); }
// No instruction moves across this; nvcc does not need it.
OPENMYTHOS_DEVICE void scheduling_barrier() {}

// ---- memory -----------------------------------------------------------------------------------------------------

// Global load of data that this block reads once: bypasses L1, which is left to data that blocks share.
OPENMYTHOS_DEVICE Words load_once(const void* p) {
    Words x;
    asm("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(x.w[0]), "=r"(x.w[1]), "=r"(x.w[2]), "=r"(x.w[3])
        : "l"(p));
    return x;
}
// Global load through L1.
OPENMYTHOS_DEVICE Words load_cached(const void* p) { return *static_cast<const Words*>(p); }

// Relaxed, device scope.
OPENMYTHOS_DEVICE void atomic_add(int32_t* p, int32_t x) { atomicAdd(p, x); }

OPENMYTHOS_DEVICE uint32_t shared_address(const void* p) {
    uint32_t y;
    asm("{.reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t;}" : "=r"(y) : "l"(p));
    return y;
}

// The first address at or after p where shared tiles may begin.
OPENMYTHOS_DEVICE uint16_t* align_tiles(Words* p) {
    return reinterpret_cast<uint16_t*>(p) + (0u - shared_address(p)) % Vendor::TILES.alignment / 2;
}

// A thread's COUNT asynchronous copies of 16 bytes from global to shared memory. issue() starts the i-th; commit() does
// nothing here, since cp.async itself writes to shared memory.
template <int COUNT>
struct AsyncCopy {
    // Writes zeros unless `inside`; `from` must be a valid address even then.
    OPENMYTHOS_DEVICE void issue(int, uint16_t* to, const void* from, bool inside) {
        const uint32_t at = shared_address(to);
        const int bytes = inside ? 16 : 0;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
    }
    OPENMYTHOS_DEVICE void commit(int, uint16_t*) const {}
};

// Closes the group of copies issued since the last call.
OPENMYTHOS_DEVICE void commit_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING groups of the block's copies are incomplete, and makes the rest visible to all threads.
template <int PENDING>
OPENMYTHOS_DEVICE void wait_copy_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#ifdef OPENMYTHOS_WGMMA
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    sync_block();
}

}  // namespace openmythos::gpu
