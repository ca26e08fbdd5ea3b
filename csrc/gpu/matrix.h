#pragma once

#include "../compat.h"

// Products of 16 x 16 tiles of 16-bit numbers, each tile spread over a wave: mma.sync m16n8k16, or WMMA on gfx11.
//
// An Operand holds 16 rows of 16 numbers, and multiply() contracts the numbers: sum[i][j] += a[i] . b[j]. Both operands
// are laid out alike. Which number of a row a lane holds is the vendor's business, and on NVIDIA not the order in
// memory: a contraction does not mind, and a lane reads 16 contiguous bytes. store_sum() knows where a column came
// from.

namespace openmythos::gpu {

constexpr int TILE = 16;

// Lanes of a wave have exchanged something through shared memory that only this wave uses.
OPENMYTHOS_DEVICE void sync_wave() {
#ifdef OPENMYTHOS_HIP
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
    __builtin_amdgcn_wave_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
#else
    __syncwarp();
#endif
}

struct Sum {
    float x[8];
};

#ifdef OPENMYTHOS_HIP

// Rows of an operand that a lane loads, and which; numbers of shared memory that transposed() needs for a wave.
constexpr int TILE_ROWS = 1, TRANSPOSED_NUMBERS = TILE * TILE;
OPENMYTHOS_DEVICE int tile_row(int) { return lane_index() % TILE; }

// Row lane % 16; both halves of the wave hold the same.
struct Operand {
    Words words[2];
};

OPENMYTHOS_DEVICE int sum_row(int i) { return 2 * i + lane_index() / TILE; }
OPENMYTHOS_DEVICE int sum_column(int) { return lane_index() % TILE; }

template <class T>
OPENMYTHOS_DEVICE void multiply(Sum& sum, const Operand& a, const Operand& b) {
    multiply_tiles<T>(sum.x, a.words, b.words);
}

// COUNT tiles side by side from the rows that begin at `rows`, at 16 bytes.
template <int COUNT>
OPENMYTHOS_DEVICE void load_tiles(const uint16_t* const (&rows)[TILE_ROWS], Operand (&tiles)[COUNT]) {
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
#pragma unroll
        for (int j = 0; j < 2; j++) tiles[c].words[j] = load_shared_by_blocks(rows[0] + c * TILE + 8 * j);
    }
}

// The same numbers one by one, where rows begin anywhere.
OPENMYTHOS_DEVICE void load_unaligned(const uint16_t* const (&rows)[TILE_ROWS], Operand& tile) {
#pragma unroll
    for (int j = 0; j < 8; j++) tile.words[j / 4].w[j % 4] = rows[0][2 * j] | uint32_t(rows[0][2 * j + 1]) << 16;
}

// A tile in shared memory, in the order of memory: the contraction runs over what transposed() made rows of.
OPENMYTHOS_DEVICE Operand load_shared_tile(const uint16_t* tile, int stride) {
    const Words* from = reinterpret_cast<const Words*>(tile + lane_index() % TILE * stride);
    return {{from[0], from[1]}};
}

// Rows become columns. `scratch` is this wave's alone.
OPENMYTHOS_DEVICE Operand transposed(const Operand& x, uint16_t* scratch) {
    const int lane = lane_index(), row = lane % TILE, upper = lane / TILE;
    Words half;
#pragma unroll
    for (int j = 0; j < 4; j++) half.w[j] = upper ? x.words[1].w[j] : x.words[0].w[j];
    sync_wave();
    store_words(scratch + row * TILE + upper * 8, half);
    sync_wave();
    Operand y;
#pragma unroll
    for (int j = 0; j < 8; j++)
        y.words[j / 4].w[j % 4] = scratch[2 * j * TILE + row] | uint32_t(scratch[(2 * j + 1) * TILE + row]) << 16;
    return y;
}

// Sums against tile c of COUNT transposed ones, as columns of the rows that begin at `out`; `factor` is that of each
// number's row.
template <int COUNT, class Keep>
OPENMYTHOS_DEVICE void store_sum(const Sum& sum, int c, float* out, int64_t stride, const float* factors, Keep keep) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int row = sum_row(i);
        if (keep(row)) out[row * stride + c * TILE + sum_column(i)] = sum.x[i] * factors[row];
    }
}

#else

constexpr int TILE_ROWS = 2, TRANSPOSED_NUMBERS = 1;
OPENMYTHOS_DEVICE int tile_row(int i) { return lane_index() / 4 + 8 * i; }

// Rows lane / 4 and 8 further: numbers 2 (lane % 4) and the next of the first half (w[0], w[1]) and of the second.
struct Operand {
    uint32_t w[4];
};

OPENMYTHOS_DEVICE int sum_row(int i) { return lane_index() / 4 + 8 * (i / 2 % 2); }
OPENMYTHOS_DEVICE int sum_column(int i) { return i / 4 * 8 + lane_index() % 4 * 2 + i % 2; }

template <class T>
OPENMYTHOS_DEVICE void multiply(Sum& sum, const Operand& a, const Operand& b) {
#pragma unroll
    for (int n = 0; n < 2; n++) multiply_m16n8k16<T>(sum.x + 4 * n, a.w[0], a.w[1], a.w[2], a.w[3], b.w[n], b.w[2 + n]);
}

// Two tiles at a time, of whose 32 columns a lane takes 8 contiguous ones; of a last single one 4.
template <int COUNT>
OPENMYTHOS_DEVICE void load_tiles(const uint16_t* const (&rows)[TILE_ROWS], Operand (&tiles)[COUNT]) {
    const int part = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < TILE_ROWS; i++) {
#pragma unroll
        for (int c = 0; c + 1 < COUNT; c += 2) {
            Words x = load_once(rows[i] + c * TILE + part * 8);
            tiles[c].w[i] = x.w[0], tiles[c].w[2 + i] = x.w[1];
            tiles[c + 1].w[i] = x.w[2], tiles[c + 1].w[2 + i] = x.w[3];
        }
        if constexpr (COUNT % 2 == 1) {
            asm("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
                : "=r"(tiles[COUNT - 1].w[i]), "=r"(tiles[COUNT - 1].w[2 + i])
                : "l"(rows[i] + (COUNT - 1) * TILE + part * 4));
        }
    }
}

OPENMYTHOS_DEVICE void load_unaligned(const uint16_t* const (&rows)[TILE_ROWS], Operand& tile) {
#pragma unroll
    for (int i = 0; i < TILE_ROWS; i++) {
        const uint16_t* from = rows[i] + lane_index() % 4 * 4;
        tile.w[i] = from[0] | uint32_t(from[1]) << 16, tile.w[2 + i] = from[2] | uint32_t(from[3]) << 16;
    }
}

OPENMYTHOS_DEVICE Operand load_shared_tile(const uint16_t* tile, int stride) {
    Operand x;
#pragma unroll
    for (int i = 0; i < 4; i++)
        x.w[i] = *reinterpret_cast<const uint32_t*>(tile + tile_row(i % 2) * stride + i / 2 * 8 + lane_index() % 4 * 2);
    return x;
}

OPENMYTHOS_DEVICE uint32_t transposed_quarter(uint32_t x) {
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

OPENMYTHOS_DEVICE Operand transposed(const Operand& x, uint16_t*) {
    return {{transposed_quarter(x.w[0]), transposed_quarter(x.w[2]), transposed_quarter(x.w[1]),
             transposed_quarter(x.w[3])}};
}

// A lane holds four contiguous columns of two rows: those that load_tiles read.
template <int COUNT, class Keep>
OPENMYTHOS_DEVICE void store_sum(const Sum& sum, int c, float* out, int64_t stride, const float* factors, Keep keep) {
    const int part = lane_index() % 4;
    const int column = c + 1 == COUNT && COUNT % 2 == 1 ? c * TILE + part * 4 : c / 2 * 32 + part * 8 + c % 2 * 4;
#pragma unroll
    for (int i = 0; i < TILE_ROWS; i++) {
        int row = tile_row(i);
        if (!keep(row)) continue;
        Words x;
#pragma unroll
        for (int j = 0; j < 4; j++)
            x.w[j] = __builtin_bit_cast(uint32_t, sum.x[j / 2 * 4 + 2 * i + j % 2] * factors[row]);
        store_words(out + row * stride + column, x);
    }
}

#endif

}  // namespace openmythos::gpu
