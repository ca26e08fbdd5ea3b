#pragma once

#include "../fragments.h"

// wgmma of sm_90a: four waves multiply 64 rows together, and each gets the sums of 16 of them. Asynchronous: between
// wgmma_fence() and wgmma_wait(), touch neither the sums nor operands in registers.

#ifdef OPENMYTHOS_WGMMA

namespace openmythos::gpu {

// Rows of a swizzled tile from `row`, a multiple of 8; columns from 16 k. K-major with 128-byte swizzle, eight rows are
// 1024 bytes (PTX ISA, "Matrix Descriptor Format" of wgmma).
OPENMYTHOS_DEVICE uint64_t descriptor(const uint16_t* tile, int row, int k) {
    const uint32_t at = shared_address(tile + row * BLOCK_K + k * TILE);
    return uint64_t((at & 0x3ffff) >> 4) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

#define OPENMYTHOS_SUM(j)                                                                               \
    "+f"(sums[j].x[0]), "+f"(sums[j].x[1]), "+f"(sums[j].x[2]), "+f"(sums[j].x[3]), "+f"(sums[j].x[4]), \
        "+f"(sums[j].x[5]), "+f"(sums[j].x[6]), "+f"(sums[j].x[7])
#define OPENMYTHOS_SUMS4 OPENMYTHOS_SUM(0), OPENMYTHOS_SUM(1), OPENMYTHOS_SUM(2), OPENMYTHOS_SUM(3)
#define OPENMYTHOS_SUMS6 OPENMYTHOS_SUMS4, OPENMYTHOS_SUM(4), OPENMYTHOS_SUM(5)
#define OPENMYTHOS_SUMS8 OPENMYTHOS_SUMS6, OPENMYTHOS_SUM(6), OPENMYTHOS_SUM(7)
#define OPENMYTHOS_REGISTERS4                                                                                   \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
    "%23, %24, %25, %26, %27, %28, %29, %30, %31"
#define OPENMYTHOS_REGISTERS6 \
    OPENMYTHOS_REGISTERS4     \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define OPENMYTHOS_REGISTERS8 \
    OPENMYTHOS_REGISTERS6     \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define OPENMYTHOS_WGMMA_SHARED(width, registers, first, second, type, ...)                                    \
    asm volatile("{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n" width "k16.f32." type \
                 "." type " {" registers "}, %" first ", %" second ", p, 1, 1, 0, 0;}"                         \
                 : __VA_ARGS__                                                                                 \
                 : "l"(a), "l"(b))
#define OPENMYTHOS_WGMMA_REGISTERS(width, registers, a0, a1, a2, a3, second, type, ...)                        \
    asm volatile("{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n" width "k16.f32." type \
                 "." type " {" registers "}, {%" a0 ", %" a1 ", %" a2 ", %" a3 "}, %" second ", p, 1, 1, 0;}"  \
                 : __VA_ARGS__                                                                                 \
                 : "r"(a.w[0]), "r"(a.w[1]), "r"(a.w[2]), "r"(a.w[3]), "l"(b))

// sums += a b of 64 x 16 N x 16, both operands in shared memory.
template <class T, int N>
OPENMYTHOS_DEVICE void wgmma(Accumulator (&sums)[N], uint64_t a, uint64_t b) {
    static_assert(N == 4 || N == 6 || N == 8);
#define OPENMYTHOS_WGMMA_TYPED(type)                                                              \
    if constexpr (N == 4)                                                                         \
        OPENMYTHOS_WGMMA_SHARED("64", OPENMYTHOS_REGISTERS4, "32", "33", type, OPENMYTHOS_SUMS4); \
    else if constexpr (N == 6)                                                                    \
        OPENMYTHOS_WGMMA_SHARED("96", OPENMYTHOS_REGISTERS6, "48", "49", type, OPENMYTHOS_SUMS6); \
    else                                                                                          \
        OPENMYTHOS_WGMMA_SHARED("128", OPENMYTHOS_REGISTERS8, "64", "65", type, OPENMYTHOS_SUMS8)
    if constexpr (__is_same(T, bf16)) {
        OPENMYTHOS_WGMMA_TYPED("bf16");
    } else {
        OPENMYTHOS_WGMMA_TYPED("f16");
    }
#undef OPENMYTHOS_WGMMA_TYPED
}

// The same with the first operand in registers, 16 rows in each of the four waves.
template <class T, int N>
OPENMYTHOS_DEVICE void wgmma(Accumulator (&sums)[N], const Fragment& a, uint64_t b) {
    static_assert(N == 4 || N == 6 || N == 8);
#define OPENMYTHOS_WGMMA_TYPED(type)                                                                                   \
    if constexpr (N == 4)                                                                                              \
        OPENMYTHOS_WGMMA_REGISTERS("64", OPENMYTHOS_REGISTERS4, "32", "33", "34", "35", "36", type, OPENMYTHOS_SUMS4); \
    else if constexpr (N == 6)                                                                                         \
        OPENMYTHOS_WGMMA_REGISTERS("96", OPENMYTHOS_REGISTERS6, "48", "49", "50", "51", "52", type, OPENMYTHOS_SUMS6); \
    else                                                                                                               \
        OPENMYTHOS_WGMMA_REGISTERS("128", OPENMYTHOS_REGISTERS8, "64", "65", "66", "67", "68", type, OPENMYTHOS_SUMS8)
    if constexpr (__is_same(T, bf16)) {
        OPENMYTHOS_WGMMA_TYPED("bf16");
    } else {
        OPENMYTHOS_WGMMA_TYPED("f16");
    }
#undef OPENMYTHOS_WGMMA_TYPED
}

// Orders later wgmma after earlier accesses to their registers.
OPENMYTHOS_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
OPENMYTHOS_DEVICE void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits for all committed products.
OPENMYTHOS_DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

}  // namespace openmythos::gpu

#endif
