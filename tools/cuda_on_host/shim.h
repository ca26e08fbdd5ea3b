#pragma once

// CUDA for a C++ compiler: a block's threads take turns on one CPU thread, and every PTX instruction in csrc/ is
// implemented by its definition in the PTX manual. An exchange within a wave waits for all 32 lanes; if one never
// arrives, the run stops.

#include <dlfcn.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __global__ __attribute__((visibility("default")))
#define __shared__ static
#define __launch_bounds__(...)
#define OPENMYTHOS_DYNAMIC_SHARED(name) Words* const name = reinterpret_cast<Words*>(host::dynamic_shared)

namespace host {

struct Index {
    unsigned x = 0, y = 0, z = 0;
};

struct Meeting {
    int arrived = 0;
    unsigned generation = 0;
};

struct Wave {
    Meeting meeting;
    uint32_t slots[2][32][6];  // of this exchange and the one before, which some lanes may still read
};

constexpr size_t STACK = 1 << 18;

struct Copy {
    uint32_t to;
    const void* from;
    int bytes;
};

struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    bool done;
    std::deque<std::vector<Copy>> groups;         // the last one is open
    std::vector<std::function<void()>> products;  // of wgmma, under way
};

// Hopper's limit per block. Does not begin at a multiple of 1024, since the hardware's need not either.
constexpr uint32_t SHARED_BEGIN = 16, SHARED_BYTES = 227 * 1024;
alignas(1024) inline unsigned char shared_memory[SHARED_BEGIN + SHARED_BYTES];
inline unsigned char* const dynamic_shared = shared_memory + SHARED_BEGIN;

inline Index thread_index, block_index, block_size;
inline std::vector<Thread> threads;
inline std::vector<Wave> waves;
inline Meeting block;
inline ucontext_t scheduler;
inline unsigned current;
inline long progress;
inline void (*body)();

inline void meet(Meeting& meeting, int expected) {
    const unsigned generation = meeting.generation;
    progress++;
    if (++meeting.arrived == expected) {
        meeting.arrived = 0, meeting.generation++;
        return;
    }
    while (meeting.generation == generation) swapcontext(&threads[current].context, &scheduler);
}

inline void start() {
    body();
    threads[current].done = true, progress++;
    swapcontext(&threads[current].context, &scheduler);
}

inline void run_block(unsigned count) {
    threads.resize(count);
    waves.assign(count / 32, {});
    block = {};
    std::memset(dynamic_shared, 0xff, SHARED_BYTES);
    for (Thread& thread : threads) {
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.get(), thread.context.uc_stack.ss_size = STACK;
        thread.context.uc_link = nullptr, thread.done = false, thread.groups.assign(1, {});
        makecontext(&thread.context, start, 0);
    }
    for (unsigned left = count; left;) {
        const long before = progress;
        left = 0;
        for (current = 0; current < count; current++) {
            if (threads[current].done) continue;
            left++, thread_index.x = current;
            swapcontext(&scheduler, &threads[current].context);
        }
        if (left && progress == before) {
            std::fprintf(stderr, "some threads wait for others that never come\n");
            std::abort();
        }
    }
}

// The values of all lanes, in lane order.
template <int COUNT>
const uint32_t (*exchange(const uint32_t (&mine)[COUNT]))[6] {
    Wave& wave = waves[current / 32];
    auto& slots = wave.slots[wave.meeting.generation % 2];
    std::memcpy(slots[current % 32], mine, sizeof(mine));
    meet(wave.meeting, 32);
    return slots;
}

inline float to_float(uint32_t bits, bool bf16) {
    if (!bf16) {
        _Float16 x;
        uint16_t low = uint16_t(bits);
        std::memcpy(&x, &low, 2);
        return float(x);
    }
    return __builtin_bit_cast(float, bits << 16);
}

inline uint16_t to_half(float x) { return __builtin_bit_cast(uint16_t, _Float16(x)); }
inline uint16_t to_bf16(float x) {
    uint32_t bits = __builtin_bit_cast(uint32_t, x);
    return x != x ? 0x7fff : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// c += a b of 16 x 8 x 16, with the fragments of the manual's figures.
inline void mma(float* c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1, bool bf16) {
    const auto* given = exchange({a0, a1, a2, a3, b0, b1});
    auto half = [&](int lane, int word, int which) { return to_float(given[lane][word] >> 16 * which & 0xffff, bf16); };
    const int me = current % 32;
    for (int i = 0; i < 4; i++) {
        const int row = me / 4 + i / 2 * 8, n = me % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++)
            c[i] +=
                half(row % 8 * 4 + k % 8 / 2, row / 8 + k / 8 * 2, k % 2) * half(n * 4 + k % 8 / 2, 4 + k / 8, k % 2);
    }
}

// Lane l gives columns 2 (l % 4) and the next of row l / 4 of an 8 x 8 matrix, and gets those of the transposed one.
inline uint32_t movmatrix(uint32_t x) {
    const auto* given = exchange({x});
    const int row = current % 32 / 4, column = current % 4 * 2;
    uint32_t y = 0;
    for (int i = 0; i < 2; i++) y |= (given[(column + i) * 4 + row / 2][0] >> row % 2 * 16 & 0xffff) << 16 * i;
    return y;
}

// ---- shared memory by address -----------------------------------------------------------------------------------

inline uint32_t shared_address(const void* p) { return uint32_t(static_cast<const unsigned char*>(p) - shared_memory); }

// Copies happen as late as allowed: at the wait.
inline void copy_async(uint32_t to, const void* from, int bytes) {
    threads[current].groups.back().push_back({to, from, bytes});
}
inline void close_group() { threads[current].groups.emplace_back(); }
inline void wait_for_groups(size_t left) {
    auto& groups = threads[current].groups;
    while (groups.size() > left + 1) {
        for (const Copy& copy : groups.front()) {
            std::memset(shared_memory + copy.to, 0, 16);
            std::memcpy(shared_memory + copy.to, copy.from, copy.bytes);
        }
        groups.pop_front();
    }
}

// Lane 8 i + r names row r of the i-th 8 x 8 matrix; lane l gets columns 2 (l % 4) and the next of row l / 4 of each.
inline void ldmatrix(uint32_t (&words)[4], uint32_t at) {
    const auto* given = exchange({at});
    const int me = current % 32;
    for (int i = 0; i < 4; i++) std::memcpy(&words[i], shared_memory + given[8 * i + me / 4][0] + me % 4 * 4, 4);
}

// An element of a K-major matrix with the 128-byte swizzle, addressed by wgmma's descriptor.
inline uint32_t described(uint64_t descriptor, int row, int k) {
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) std::abort();
    uint32_t at = (descriptor & 0x3fff) << 4, eight_rows = (descriptor >> 32 & 0x3fff) << 4;
    at += row / 8 * eight_rows + row % 8 * 128 + k * 2;
    at ^= (at >> 7 & 7) << 4;
    uint16_t bits;
    std::memcpy(&bits, shared_memory + at, 2);
    return bits;
}

// Products happen at the wait too; before it neither sums nor operands may be touched.
inline void finish_products() {
    for (const auto& product : threads[current].products) product();
    threads[current].products.clear();
}

// sums += a b of 64 x 16 N x 16, for the elements of this lane: `mine` gives those of a by row of its two, and k.
template <int N, class Sum, class Mine>
void add_products(Sum (&sums)[N], Mine mine, uint64_t b, bool bf16) {
    const int lane = current % 32;
    for (int n = 0; n < N; n++) {
        for (int i = 0; i < 8; i++) {
            const int column = n * 16 + i / 4 * 8 + lane % 4 * 2 + i % 2;
            for (int k = 0; k < 16; k++) sums[n].x[i] += mine(i / 2 % 2, k) * to_float(described(b, column, k), bf16);
        }
    }
}

// For a wave's 16 rows; every lane computes its own.
template <int N, class Sum>
void wgmma(Sum (&sums)[N], uint64_t a, uint64_t b, bool bf16) {
    threads[current].products.push_back([&sums, a, b, bf16] {
        const int first = current / 32 % 4 * 16 + current % 32 / 4;
        add_products(sums, [=](int row, int k) { return to_float(described(a, first + row * 8, k), bf16); }, b, bf16);
    });
}

// The same with a wave's 16 rows of a in its registers, as mma.sync has them.
template <int N, class Sum, class Operand>
void wgmma(Sum (&sums)[N], const Operand& a, uint64_t b, bool bf16) {
    threads[current].products.push_back([&sums, &a, b, bf16] {
        const auto* given = exchange({a.w[0], a.w[1], a.w[2], a.w[3]});
        const int first = current % 32 / 4 * 4;
        float mine[2][16];
        for (int row = 0; row < 2; row++)
            for (int k = 0; k < 16; k++)
                mine[row][k] = to_float(given[first + k % 8 / 2][row + k / 8 * 2] >> k % 2 * 16 & 0xffff, bf16);
        add_products(sums, [&](int row, int k) { return mine[row][k]; }, b, bf16);
    });
}

}  // namespace host

#define threadIdx host::thread_index
#define blockIdx host::block_index
#define blockDim host::block_size

inline void __syncthreads() { host::meet(host::block, int(host::threads.size())); }
inline void __syncwarp() { host::exchange({0u}); }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline float __shfl_xor_sync(unsigned, float x, int mask) {
    const auto* given = host::exchange({__builtin_bit_cast(uint32_t, x)});
    return __builtin_bit_cast(float, given[host::current % 32 ^ mask][0]);
}
inline int atomicAdd(int* p, int x) {
    const int before = *p;
    *p += x;
    return before;
}
inline unsigned __ballot_sync(unsigned, bool x) {
    const auto* given = host::exchange({uint32_t(x)});
    unsigned all = 0;
    for (int lane = 0; lane < 32; lane++) all |= given[lane][0] << lane;
    return all;
}
