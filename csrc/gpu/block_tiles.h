#pragma once

#include "matrix.h"
#include "params.h"

// Products of blocks of rows of 16-bit numbers that pass through shared memory: sums[i][j] += a[i] . b[j], with the
// contraction innermost in both. A slab holds DEPTH numbers of each of its rows, in chunks of 16 bytes that are
// permuted so that eight rows are read without bank conflicts; on NVIDIA that is the 128-byte swizzle of wgmma's
// descriptors.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define OPENMYTHOS_WGMMA 1
#endif

namespace openmythos::gpu {

#ifdef OPENMYTHOS_HIP
constexpr int DEPTH = HIP_SLABS.depth, STAGES = HIP_SLABS.stages;
#else
constexpr int DEPTH = CUDA_SLABS.depth, STAGES = CUDA_SLABS.stages;
#endif
constexpr int CHUNK = 8, CHUNKS = DEPTH / CHUNK;

// Where a chunk of a row of a slab is, in numbers.
OPENMYTHOS_DEVICE int slab_at(int row, int chunk) {
    const int turn = CHUNKS == 8 ? row : row / 2;
    return row * DEPTH + (chunk ^ turn % CHUNKS) * CHUNK;
}

// ---- shared memory ----------------------------------------------------------------------------------------------

#ifndef OPENMYTHOS_HIP
OPENMYTHOS_DEVICE uint32_t shared_address(const void* p) {
    uint32_t y;
    asm("{.reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t;}" : "=r"(y) : "l"(p));
    return y;
}
#endif

// What the launch asked for. wgmma counts its swizzle from multiples of 1024 bytes: the launch asks for as many more.
OPENMYTHOS_DEVICE uint16_t* slabs() {
    OPENMYTHOS_DYNAMIC_SHARED(memory);
    uint16_t* first = reinterpret_cast<uint16_t*>(memory);
#ifndef OPENMYTHOS_HIP
    first += (0u - shared_address(memory)) % 1024 / 2;
#endif
    return first;
}

// COUNT chunks of a thread on their way to shared memory: carried by the hardware on NVIDIA, by registers on AMD.
template <int COUNT>
struct Carried {
#ifdef OPENMYTHOS_HIP
    Words words[COUNT];
#endif
    // Outside, the chunk is zero; `from` has to be an address that exists all the same.
    OPENMYTHOS_DEVICE void begin([[maybe_unused]] int i, [[maybe_unused]] uint16_t* to, const void* from, bool inside) {
#ifdef OPENMYTHOS_HIP
        words[i] = inside ? load_shared_by_blocks(from) : Words{};
#else
        const uint32_t at = shared_address(to);
        const int bytes = inside ? 16 : 0;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
#endif
    }
    OPENMYTHOS_DEVICE void land([[maybe_unused]] int i, [[maybe_unused]] uint16_t* to) const {
#ifdef OPENMYTHOS_HIP
        store_words(to, words[i]);
#endif
    }
};

// What has begun since the last call is one group.
OPENMYTHOS_DEVICE void close_group() {
#ifndef OPENMYTHOS_HIP
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// All but the last LEFT groups are there, for every thread of the block.
template <int LEFT>
OPENMYTHOS_DEVICE void wait_for_groups() {
#ifndef OPENMYTHOS_HIP
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#ifdef OPENMYTHOS_WGMMA
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
#endif
    sync_block();
}

// `begin(step, stage)` starts the loads of a step, `land(stage)` puts them where they belong, `multiply(stage)` uses
// them: COUNT - 1 steps are on their way while one is multiplied.
template <int COUNT = STAGES, class Begin, class Land, class Multiply>
OPENMYTHOS_DEVICE void stream_slabs(int steps, Begin begin, Land land, Multiply multiply) {
#pragma unroll
    for (int s = 0; s < COUNT - 1; s++) {
        if (s < steps) begin(s, s), land(s);
        close_group();
    }
    int stage = 0, next = COUNT - 1;
    for (int s = 0; s < steps; s++) {
        // After this the stage of step s - 1 is free too: every wave has multiplied it.
        wait_for_groups<COUNT - 2>();
        const bool more = s + COUNT - 1 < steps;
        if (more) begin(s + COUNT - 1, next);
        close_group();
        multiply(stage);
        if (more) land(next);
        stage = stage + 1 == COUNT ? 0 : stage + 1;
        next = next + 1 == COUNT ? 0 : next + 1;
    }
}

// ---- products ---------------------------------------------------------------------------------------------------

// The compiler neither reads a sum before nor adds to it after this.
template <int N>
OPENMYTHOS_DEVICE void hold(Sum (&sums)[N]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
#ifdef OPENMYTHOS_HIP
            asm volatile("" : "+v"(sums[n].x[i]));
#else
            asm volatile("" : "+f"(sums[n].x[i])::"memory");
#endif
        }
    }
}

// How WAVES waves share ROWS x COLUMNS sums: M x N tiles of 16 x 16 each, ACROSS waves side by side.
template <int ROWS, int COLUMNS, int WAVES, int ACROSS>
struct Block {
#ifdef OPENMYTHOS_WGMMA
    // Four waves execute an instruction of 64 rows together, and each gets 16 of them.
    static_assert(WAVES % 4 == 0 && ROWS % (16 * WAVES) == 0);
    static constexpr int M = ROWS / (TILE * WAVES), N = COLUMNS / TILE;
    OPENMYTHOS_DEVICE static int row(int m) { return (wave_index() / 4 * M + m) * 64 + wave_index() % 4 * TILE; }
    OPENMYTHOS_DEVICE static int column(int n) { return n * TILE; }
#else
    static constexpr int DOWN = WAVES / ACROSS, M = ROWS / (TILE * DOWN), N = COLUMNS / (TILE * ACROSS);
    static_assert(DOWN * ACROSS == WAVES && M * TILE * DOWN == ROWS && N * TILE * ACROSS == COLUMNS);
    OPENMYTHOS_DEVICE static int row(int m) { return (wave_index() / ACROSS * M + m) * TILE; }
    OPENMYTHOS_DEVICE static int column(int n) { return (wave_index() % ACROSS * N + n) * TILE; }
#endif
};

#ifndef OPENMYTHOS_HIP
// Of 16 rows; lanes 8 i to 8 i + 7 name the chunks of the i-th quarter.
OPENMYTHOS_DEVICE Operand load_chunks(const uint16_t* chunk) {
    Operand x;
    const uint32_t at = shared_address(chunk);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.w[0]), "=r"(x.w[1]), "=r"(x.w[2]), "=r"(x.w[3])
                 : "r"(at)
                 : "memory");
    return x;
}
#endif

// Numbers 16 k to 16 k + 15 of 16 rows of a slab.
OPENMYTHOS_DEVICE Operand load_operand(const uint16_t* slab, int row, int k) {
    const int lane = lane_index();
#ifdef OPENMYTHOS_HIP
    Operand x;
#pragma unroll
    for (int j = 0; j < 2; j++)
        x.words[j] = *reinterpret_cast<const Words*>(slab + slab_at(row + lane % TILE, 2 * k + j));
    return x;
#else
    return load_chunks(slab + slab_at(row + lane % TILE, 2 * k + lane / TILE));
#endif
}

#ifdef OPENMYTHOS_WGMMA

// Rows from `row`, a multiple of 8, on; numbers from 16 k on. Eight rows are 1024 bytes, K-major, 128-byte swizzle
// (PTX ISA, "Matrix Descriptor Format" of wgmma).
OPENMYTHOS_DEVICE uint64_t descriptor(const uint16_t* slab, int row, int k) {
    const uint32_t at = shared_address(slab + row * DEPTH + k * TILE);
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

// sums += a b of 64 x 16 N x 16, both in shared memory. Asynchronous: the sums are nobody's before wait_for_products().
template <class T, int N>
OPENMYTHOS_DEVICE void begin_product(Sum (&sums)[N], uint64_t a, uint64_t b) {
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

// The same with 16 rows of the first matrix in each of the four waves' registers, which stay as they are until then
// too.
template <class T, int N>
OPENMYTHOS_DEVICE void begin_product(Sum (&sums)[N], const Operand& a, uint64_t b) {
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

OPENMYTHOS_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

template <int M, int N>
OPENMYTHOS_DEVICE void wait_for_products(Sum (&sums)[M][N]) {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int m = 0; m < M; m++) hold(sums[m]);
}

#endif

// This wave's sums += rows of slab a . rows of slab b.
template <class T, class B>
OPENMYTHOS_DEVICE void multiply_slab(Sum (&sums)[B::M][B::N], const uint16_t* a, const uint16_t* b) {
#ifdef OPENMYTHOS_WGMMA
    begin_products();
#pragma unroll
    for (int k = 0; k < DEPTH / TILE; k++) {
#pragma unroll
        for (int m = 0; m < B::M; m++)
            begin_product<T>(sums[m], descriptor(a, B::row(m) / 64 * 64, k), descriptor(b, 0, k));
    }
    wait_for_products(sums);
#else
#pragma unroll
    for (int k = 0; k < DEPTH / TILE; k++) {
        Operand rows[B::M];
#pragma unroll
        for (int m = 0; m < B::M; m++) rows[m] = load_operand(a, B::row(m), k);
#pragma unroll
        for (int n = 0; n < B::N; n++) {
            const Operand columns = load_operand(b, B::column(n), k);
#pragma unroll
            for (int m = 0; m < B::M; m++) multiply<T>(sums[m][n], rows[m], columns);
        }
    }
#endif
}

}  // namespace openmythos::gpu
