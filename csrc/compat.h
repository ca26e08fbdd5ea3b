#pragma once

// What CUDA and HIP call differently. Beside this only the files about matrix instructions and their operands know
// which one it is. nvcc reads it, and clang or hipcc with `-x hip -nogpuinc -nogpulib`: on AMD there are compiler
// builtins and nothing else, since the device libraries need not be installed. Waves have 32 lanes on both.

#include <stdint.h>

#ifdef __HIP__
#define OPENMYTHOS_HIP 1
#ifndef __device__
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#endif
// No shared object can be preloaded over a kernel, so that the compiler may see through everything in it.
#define OPENMYTHOS_KERNEL(threads) extern "C" __global__ __attribute__((amdgpu_flat_work_group_size(1, threads))) void
#define OPENMYTHOS_KERNEL_SHARING(threads, blocks) OPENMYTHOS_KERNEL(threads)
#else
#define OPENMYTHOS_KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
// So many blocks have to fit a multiprocessor. Not told, ptxas gives up registers, and loads in flight with them, for
// more. AMD's compiler weighs that by itself.
#define OPENMYTHOS_KERNEL_SHARING(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#endif
#define OPENMYTHOS_DEVICE __device__ __attribute__((always_inline)) inline
// Shared memory of the size that the launch asks for.
#ifndef OPENMYTHOS_DYNAMIC_SHARED
#define OPENMYTHOS_DYNAMIC_SHARED(name) extern __shared__ Words name[]
#endif

namespace openmythos::gpu {

constexpr int WAVE = 32;

// ---- where a thread is ------------------------------------------------------------------------------------------

#ifdef OPENMYTHOS_HIP
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
#else
OPENMYTHOS_DEVICE int thread_index() { return int(threadIdx.x); }
OPENMYTHOS_DEVICE int block_threads() { return int(blockDim.x); }
OPENMYTHOS_DEVICE int block_index() { return int(blockIdx.x); }
OPENMYTHOS_DEVICE int block_index_y() { return int(blockIdx.y); }
OPENMYTHOS_DEVICE int block_index_z() { return int(blockIdx.z); }
OPENMYTHOS_DEVICE void sync_block() { __syncthreads(); }
#endif
// A number that is the same in all lanes of a wave, where the compiler cannot know it.
OPENMYTHOS_DEVICE int uniform(int x) {
#ifdef OPENMYTHOS_HIP
    return __builtin_amdgcn_readfirstlane(x);
#else
    return x;
#endif
}
OPENMYTHOS_DEVICE int lane_index() { return thread_index() % WAVE; }
OPENMYTHOS_DEVICE int wave_index() { return thread_index() / WAVE; }

// ---- exchange within a wave -------------------------------------------------------------------------------------

// The value of lane `lane ^ MASK`.
template <int MASK>
OPENMYTHOS_DEVICE float from_lane_xor(float x) {
    static_assert(MASK > 0 && MASK < WAVE);
#ifdef OPENMYTHOS_HIP
    int bits = __builtin_bit_cast(int, x);
    if constexpr ((MASK & 16) != 0) {
        bits = __builtin_amdgcn_permlanex16(bits, bits, 0x76543210, 0xfedcba98, false, false);
        // clang 19 moves the exchange into a branch that alone uses the result, where the other lanes are switched off.
        asm volatile("" : "+v"(bits));
    }
    // row_xmask: a register move on RDNA, where a shuffle through LDS would take tens of cycles.
    if constexpr ((MASK & 15) != 0) bits = __builtin_amdgcn_update_dpp(0, bits, 0x160 + (MASK & 15), 0xf, 0xf, true);
    return __builtin_bit_cast(float, bits);
#else
    return __shfl_xor_sync(0xffffffffu, x, MASK);
#endif
}

// Bit l tells whether it is so in lane l. All lanes of the wave have to be there.
OPENMYTHOS_DEVICE uint32_t wave_ballot(bool x) {
#ifdef OPENMYTHOS_HIP
    return __builtin_amdgcn_ballot_w32(x);
#else
    return __ballot_sync(0xffffffffu, x);
#endif
}

template <int MASK = WAVE / 2>
OPENMYTHOS_DEVICE float wave_sum(float x) {
    if constexpr (MASK > 0) {
        x += from_lane_xor<MASK>(x);
        return wave_sum<MASK / 2>(x);
    }
    return x;
}

template <int MASK = WAVE / 2>
OPENMYTHOS_DEVICE float wave_max(float x) {
    if constexpr (MASK > 0) {
        x = __builtin_fmaxf(x, from_lane_xor<MASK>(x));
        return wave_max<MASK / 2>(x);
    }
    return x;
}

// Sums COUNT values over the wave at once, halving their number while there is more than one: COUNT - 1 exchanges and
// log2(WAVE / COUNT) more, instead of COUNT log2(WAVE). Lane l gets the sum of values[l / (WAVE / COUNT)].
template <int COUNT, int MASK = WAVE / 2>
OPENMYTHOS_DEVICE float wave_sums(float (&values)[COUNT]) {
    static_assert(COUNT >= 1 && COUNT <= WAVE && (COUNT & (COUNT - 1)) == 0);
    if constexpr (COUNT == 1) {
        return wave_sum<MASK>(values[0]);
    } else {
        const bool upper = lane_index() & MASK;
        float half[COUNT / 2];
#pragma unroll
        for (int i = 0; i < COUNT / 2; i++) {
            float given = upper ? values[i] : values[i + COUNT / 2], kept = upper ? values[i + COUNT / 2] : values[i];
            half[i] = kept + from_lane_xor<MASK>(given);
        }
        return wave_sums<COUNT / 2, MASK / 2>(half);
    }
}

// ---- numbers ----------------------------------------------------------------------------------------------------

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

OPENMYTHOS_DEVICE float to_float(float x) { return x; }
OPENMYTHOS_DEVICE float to_float(bf16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }
OPENMYTHOS_DEVICE float to_float(f16 x) {
#ifdef OPENMYTHOS_HIP
    return float(__builtin_bit_cast(_Float16, x.bits));
#else
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#endif
}

template <class T>
OPENMYTHOS_DEVICE T from_float(float x);
template <>
OPENMYTHOS_DEVICE float from_float<float>(float x) {
    return x;
}
template <>
OPENMYTHOS_DEVICE bf16 from_float<bf16>(float x) {
#ifdef OPENMYTHOS_HIP
    uint32_t bits = __builtin_bit_cast(uint32_t, x);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return {uint16_t(x != x ? bits >> 16 | 0x40 : rounded)};
#else
    uint16_t y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return {y};
#endif
}
template <>
OPENMYTHOS_DEVICE f16 from_float<f16>(float x) {
#ifdef OPENMYTHOS_HIP
    return {__builtin_bit_cast(uint16_t, _Float16(x))};
#else
    uint16_t y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return {y};
#endif
}

// Two numbers of 16 bits in one register, the first in its lower half.
template <class T>
OPENMYTHOS_DEVICE uint32_t packed(float low, float high) {
#ifdef OPENMYTHOS_HIP
    return from_float<T>(low).bits | uint32_t(from_float<T>(high).bits) << 16;
#else
    uint32_t y;
    if constexpr (__is_same(T, bf16))
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
#endif
}

// The same for numbers from 0 to 1, where a NaN need not stay one.
template <class T>
OPENMYTHOS_DEVICE uint32_t packed_probabilities(float low, float high) {
#ifdef OPENMYTHOS_HIP
    if constexpr (__is_same(T, bf16))
        return __builtin_amdgcn_perm(__builtin_bit_cast(uint32_t, high) + 0x8000,
                                     __builtin_bit_cast(uint32_t, low) + 0x8000, 0x07060302);
#endif
    return packed<T>(low, high);
}

OPENMYTHOS_DEVICE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

OPENMYTHOS_DEVICE float inverse_sqrt(float x) {
#ifdef OPENMYTHOS_HIP
    return __builtin_amdgcn_rsqf(x);
#else
    return rsqrtf(x);
#endif
}

// 2^x and log2(x) as the hardware has them: about one unit in the last place.
OPENMYTHOS_DEVICE float fast_exp2(float x) {
#ifdef OPENMYTHOS_HIP
    return __builtin_amdgcn_exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

OPENMYTHOS_DEVICE float fast_log2(float x) {
#ifdef OPENMYTHOS_HIP
    return __builtin_amdgcn_logf(x);
#else
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// The same number, but the compiler no longer knows: comparisons with it are made again rather than kept in registers.
OPENMYTHOS_DEVICE int forgotten(int x) {
#ifdef OPENMYTHOS_HIP
    asm("" : "+v"(x));
#else
    asm("" : "+r"(x));
#endif
    return x;
}

// The same number, but what depends on it is worked out again in every round of a loop.
OPENMYTHOS_DEVICE int renewed(int x) {
#ifdef OPENMYTHOS_HIP
    asm volatile("" : "+v"(x));
#else
    asm volatile("" : "+r"(x));
#endif
    return x;
}

// ---- memory -----------------------------------------------------------------------------------------------------

// 16 bytes: what one load or store moves.
typedef uint32_t words4 __attribute__((vector_size(16)));
struct alignas(16) Words {
    uint32_t w[4];
};

#ifdef OPENMYTHOS_HIP
// Pointers out of a struct may point anywhere as far as the compiler knows, and would be read by flat instructions.
typedef __attribute__((address_space(1))) words4 global_words4;
OPENMYTHOS_DEVICE const global_words4* in_memory(const void* p) { return (const global_words4*)p; }
#endif

// Data that this block reads once: it must not push out of the first cache what blocks share.
OPENMYTHOS_DEVICE Words load_once(const void* p) {
#ifdef OPENMYTHOS_HIP
    return __builtin_bit_cast(Words, __builtin_nontemporal_load(in_memory(p)));
#else
    Words x;
    asm("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(x.w[0]), "=r"(x.w[1]), "=r"(x.w[2]), "=r"(x.w[3])
        : "l"(p));
    return x;
#endif
}
OPENMYTHOS_DEVICE Words load_shared_by_blocks(const void* p) {
#ifdef OPENMYTHOS_HIP
    return __builtin_bit_cast(Words, *in_memory(p));
#else
    return *static_cast<const Words*>(p);
#endif
}
OPENMYTHOS_DEVICE void store_words(void* p, Words x) { *static_cast<Words*>(p) = x; }

// *p += x in one go, for every thread of the device.
OPENMYTHOS_DEVICE void add_atomically(int32_t* p, int32_t x) {
#ifdef OPENMYTHOS_HIP
    typedef __attribute__((address_space(1))) int32_t global_int32;
    __hip_atomic_fetch_add((global_int32*)p, x, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
#else
    atomicAdd(p, x);
#endif
}

// ---- matrix instructions ----------------------------------------------------------------------------------------

// A wave multiplies two matrices of 16 rows of bf16 or f16, read as they lie: acc[m][n] += sum over k of a[m][k]
// b[n][k] for TILE_DEPTH columns k. A lane gives two vectors of eight columns of each, and holds eight numbers of the
// result. Which vectors is the same for a and b, so that the instructions may see the columns in an order of their own.
#ifdef OPENMYTHOS_HIP
constexpr int TILE_DEPTH = 16;
OPENMYTHOS_DEVICE int tile_vector_row(int) { return lane_index() % 16; }
OPENMYTHOS_DEVICE int tile_vector_column(int vector) { return 8 * vector; }
OPENMYTHOS_DEVICE int tile_m(int i) { return 2 * i + lane_index() / 16; }
OPENMYTHOS_DEVICE int tile_n(int) { return lane_index() % 16; }
#else
constexpr int TILE_DEPTH = 32;
OPENMYTHOS_DEVICE int tile_vector_row(int vector) { return lane_index() / 4 + 8 * vector; }
OPENMYTHOS_DEVICE int tile_vector_column(int) { return 8 * (lane_index() % 4); }
OPENMYTHOS_DEVICE int tile_m(int i) { return lane_index() / 4 + i % 4 / 2 * 8; }
OPENMYTHOS_DEVICE int tile_n(int i) { return i / 4 * 8 + lane_index() % 4 * 2 + i % 2; }
#endif

#ifndef OPENMYTHOS_HIP
// c += a b of 16 x 8 x 16; registers as PTX numbers them. Volatile: all lanes have to execute it together.
template <class T>
OPENMYTHOS_DEVICE void multiply_m16n8k16(float* c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
#define OPENMYTHOS_MMA(type)                                                            \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                       \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))
    if constexpr (__is_same(T, bf16))
        OPENMYTHOS_MMA("bf16");
    else
        OPENMYTHOS_MMA("f16");
#undef OPENMYTHOS_MMA
}
#endif

template <class T>
OPENMYTHOS_DEVICE void multiply_tiles(float (&acc)[8], const Words (&a)[2], const Words (&b)[2]) {
#ifdef OPENMYTHOS_HIP
    typedef float result __attribute__((vector_size(32)));
    result c = __builtin_bit_cast(result, acc);
    if constexpr (__is_same(T, bf16)) {
        typedef short operand __attribute__((vector_size(32)));
        c = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(__builtin_bit_cast(operand, a), __builtin_bit_cast(operand, b),
                                                        c);
    } else {
        typedef _Float16 operand __attribute__((vector_size(32)));
        c = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(__builtin_bit_cast(operand, a), __builtin_bit_cast(operand, b),
                                                       c);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) acc[i] = c[i];
#else
    // Of the 32 columns each instruction takes 16: of a lane's eight the first, then the last four.
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
        for (int j = 0; j < 4; j += 2)
            multiply_m16n8k16<T>(acc + 4 * n, a[0].w[j], a[1].w[j], a[0].w[j + 1], a[1].w[j + 1], b[n].w[j],
                                 b[n].w[j + 1]);
    }
#endif
}

}  // namespace openmythos::gpu
