#pragma once

#include "../core/gpu/block_product.h"
#include "../core/gpu/block_store.h"
#include "routing.h"

// The experts of many rows of bfloat16 or float16: two grouped GEMMs with blocks of 128 x 128, and a sum over each
// row's slots. A shared expert is a group of all rows.

namespace openmythos::gpu {

using GroupedShape = BlockShape<MOE_BLOCK, MOE_BLOCK, MOE_BLOCK_THREADS / WAVE, 4>;
// In the first GEMM, 16 rows of gate alternate with the 16 rows of up of the same hidden units, so that a lane gets
// both.
constexpr int MOE_UNITS = MOE_BLOCK / 2;
// A thread copies the same chunk of every ROW_STEP-th row of a tile.
constexpr int ROW_STEP = MOE_BLOCK_THREADS / CHUNKS, COPIES = MOE_BLOCK / ROW_STEP;
// Row tiles that go through all columns of blocks together: their rows stay in L2, and an expert's weights are read
// from memory once for all of them.
constexpr int GROUP_TILES = 16;

// Resident blocks, limited by shared memory: 97 KB per block, of 228 KB per multiprocessor on Hopper and data-centre
// Blackwell, and of 100 or 164 KB elsewhere.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1200)
constexpr int RESIDENT_BLOCKS = 1;
#else
constexpr int RESIDENT_BLOCKS = 2;
#endif

struct BlockPlace {
    int tile, column;
};

OPENMYTHOS_DEVICE BlockPlace block_place(int block, int tiles, int columns) {
    const int group = block / (GROUP_TILES * columns), rest = block - group * GROUP_TILES * columns;
    const int left = tiles - group * GROUP_TILES, size = left < GROUP_TILES ? left : GROUP_TILES;
    return {group * GROUP_TILES + rest % size, rest / size};
}

OPENMYTHOS_DEVICE int ceil_div(int a, int b) { return (a + b - 1) / b; }

// sums += a . b over `steps` tiles, for the first `rows` rows. a(i) and b(i) are the sources of this thread's i-th
// chunk, null for zeros; next() advances to the next tile. `valid` is any address that can be read.
template <class T, class A, class B, class Next>
OPENMYTHOS_DEVICE void multiply_rows(Accumulator (&sums)[GroupedShape::M][GroupedShape::N], int rows, int steps,
                                     const void* valid, A a, B b, Next next) {
    constexpr int ELEMENTS = MOE_BLOCK * BLOCK_K;  // of a tile
    uint16_t* mine = shared_tiles() + swizzled(thread_index() / CHUNKS, thread_index() % CHUNKS);
    AsyncCopy<2 * COPIES> copies;
    const auto at = [&](int i, int stage) {
        return mine + stage * 2 * ELEMENTS + i / COPIES * ELEMENTS + i % COPIES * ROW_STEP * BLOCK_K;
    };
    const auto load = [&](int, int stage) {
#pragma unroll
        for (int i = 0; i < 2 * COPIES; i++) {
            const void* from = i < COPIES ? a(i) : b(i - COPIES);
            copies.issue(i, at(i, stage), from ? from : valid, from);
        }
        next();
    };
    const auto commit = [&](int stage) {
#pragma unroll
        for (int i = 0; i < 2 * COPIES; i++) copies.commit(i, at(i, stage));
    };
    // A wave's rows, or with wgmma those of its warpgroup, lie in one half of the block, which may be empty.
    const bool has_rows = uniform(GroupedShape::row(0) / 64 * 64) < rows;
    pipeline(steps, load, commit, [&](int stage) {
        if (!has_rows) return;
        const uint16_t* tiles = shared_tiles() + stage * 2 * ELEMENTS;
        multiply_tiles<T, GroupedShape>(sums, tiles, tiles + ELEMENTS);
    });
    // After this barrier the tiles may be overwritten.
    sync_block();
}

// ---- gate and up ------------------------------------------------------------------------------------------------

template <class T>
OPENMYTHOS_DEVICE void grouped_up(const MoeGroupedArgs& q) {
    __shared__ const T* rows[MOE_BLOCK];  // of x; null past the end
    __shared__ float factors[MOE_BLOCK];
    const MoeExpertsArgs& p = q.moe;
    const int thread = thread_index();
    int block = block_index(), first, end, unit, width;
    const T *gate, *up;
    int64_t gate_stride, up_stride, act_stride;
    T* act = static_cast<T*>(p.act);
    const T* x = static_cast<const T*>(p.x.data);
    if (block < p.shared_blocks) {
        int s = 0, begin = 0;
        while (block >= p.shared[s].end_block) begin = p.shared[s++].end_block;
        const MoeShared& expert = p.shared[s];
        width = expert.width;
        const BlockPlace place = block_place(block - begin, ceil_div(p.rows, MOE_BLOCK), ceil_div(width, MOE_UNITS));
        first = place.tile * MOE_BLOCK, end = p.rows, unit = place.column * MOE_UNITS;
        gate = static_cast<const T*>(expert.gate), up = static_cast<const T*>(expert.up);
        gate_stride = expert.gate_stride, up_stride = expert.up_stride;
        act += shared_offset(p, s), act_stride = p.shared_width;
        if (thread < MOE_BLOCK) {
            rows[thread] = first + thread < end ? x + (first + thread) * p.x.stride : nullptr;
            factors[thread] = 1.f;
        }
    } else {
        width = p.width;
        const BlockPlace place = block_place(block - p.shared_blocks, q.tile_count, ceil_div(width, MOE_UNITS));
        const int expert = uniform(q.tiles[place.tile].expert);
        if (expert < 0) return;
        first = uniform(q.tiles[place.tile].first), end = uniform(q.tiles[place.tile].end);
        unit = place.column * MOE_UNITS;
        gate = static_cast<const T*>(p.gate_up) + expert * p.gate_up_strides[0], up = gate + p.gate_up_strides[1];
        gate_stride = up_stride = p.gate_up_strides[2], act_stride = width;
        if (thread < MOE_BLOCK) {
            rows[thread] = nullptr, factors[thread] = 0.f;
            if (first + thread < end) {
                const int slot = q.slots[first + thread], row = slot / p.k;
                rows[thread] = x + row * p.x.stride;
                factors[thread] = p.weights[row * p.weights_stride + slot % p.k];
            }
        }
    }
    sync_block();
    const int row = thread / CHUNKS, mine = unit + row / 32 * TILE + row % TILE;
    const bool is_up = row / TILE % 2;
    const int64_t stride = is_up ? up_stride : gate_stride;
    const T* weights = (is_up ? up : gate) + mine * stride;
    int column = thread % CHUNKS * CHUNK;
    Accumulator sums[GroupedShape::M][GroupedShape::N] = {};
    multiply_rows<T>(
        sums, end - first, ceil_div(p.d, BLOCK_K), x,
        [&](int i) -> const T* {
            const T* from = rows[row + i * ROW_STEP];
            return from && column < p.d ? from + column : nullptr;
        },
        [&](int i) -> const T* {
            const bool inside = mine + i * (ROW_STEP / 2) < width && column < p.d;
            return inside ? weights + i * (ROW_STEP / 2) * stride + column : nullptr;
        },
        [&] { column += BLOCK_K; });
    uint16_t* staged = shared_tiles();
#pragma unroll
    for (int m = 0; m < GroupedShape::M; m++) {
#pragma unroll
        for (int n = 0; n < GroupedShape::N; n += 2) {
            float hidden[8];
#pragma unroll
            for (int i = 0; i < 8; i++)
                hidden[i] =
                    swiglu(sums[m][n].x[i], sums[m][n + 1].x[i]) * factors[GroupedShape::row(m) + accumulator_row(i)];
            stage_fragment<T, MOE_UNITS>(staged, GroupedShape::row(m), GroupedShape::column(n) / 2, hidden);
        }
    }
    sync_block();
    store_staged_rows<MOE_BLOCK, MOE_UNITS, MOE_BLOCK_THREADS>(staged, width - unit, [&](int r) -> uint16_t* {
        return first + r < end ? &(act + (first + r) * act_stride + unit)->bits : nullptr;
    });
}

// ---- down -------------------------------------------------------------------------------------------------------

template <class T>
OPENMYTHOS_DEVICE void grouped_down(const MoeGroupedArgs& q) {
    __shared__ int rows[MOE_BLOCK];  // of y; -1 past the end
    const MoeExpertsArgs& p = q.moe;
    const int thread = thread_index(), columns = ceil_div(p.d, MOE_BLOCK), row_tiles = ceil_div(p.rows, MOE_BLOCK);
    const int shared_blocks = p.shared_count ? row_tiles * columns : 0, block = block_index();
    int first, end, width, steps = 0, s = 0, experts;
    const T *act = static_cast<const T*>(p.act), *weights;
    int64_t stride, act_stride;
    BlockPlace place;
    if (block < shared_blocks) {
        // One product for all shared experts: K runs over the hidden units of one after the other.
        place = block_place(block, row_tiles, columns);
        first = place.tile * MOE_BLOCK, end = p.rows, experts = p.shared_count;
        for (int each = 0; each < experts; each++) steps += ceil_div(p.shared[each].width, BLOCK_K);
        width = p.shared[0].width, weights = static_cast<const T*>(p.shared[0].down), stride = p.shared[0].down_stride;
        act += shared_offset(p, 0), act_stride = p.shared_width;
        if (thread < MOE_BLOCK) rows[thread] = first + thread < end ? p.slots + first + thread : -1;
    } else {
        place = block_place(block - shared_blocks, q.tile_count, columns);
        const int expert = uniform(q.tiles[place.tile].expert);
        if (expert < 0) return;
        first = uniform(q.tiles[place.tile].first), end = uniform(q.tiles[place.tile].end), experts = 1;
        width = p.width, steps = ceil_div(width, BLOCK_K), act_stride = width;
        weights = static_cast<const T*>(p.down) + expert * p.down_strides[0], stride = p.down_strides[1];
        if (thread < MOE_BLOCK) rows[thread] = first + thread < end ? q.slots[first + thread] : -1;
    }
    const int row = thread / CHUNKS, chunk = thread % CHUNKS * CHUNK, from = place.column * MOE_BLOCK + row;
    int begin = 0;  // hidden unit of the current expert at which the tile begins
    act += (first + row) * act_stride + chunk;
    weights += from * stride + chunk;
    Accumulator sums[GroupedShape::M][GroupedShape::N] = {};
    multiply_rows<T>(
        sums, end - first, steps, p.act,
        [&](int i) -> const T* {
            return first + row + i * ROW_STEP < end && begin + chunk < width ? act + i * ROW_STEP * act_stride + begin
                                                                             : nullptr;
        },
        [&](int i) -> const T* {
            return from + i * ROW_STEP < p.d && begin + chunk < width ? weights + i * ROW_STEP * stride + begin
                                                                      : nullptr;
        },
        [&] {
            begin += BLOCK_K;
            if (begin < width || s + 1 >= experts) return;
            const MoeShared& expert = p.shared[++s];
            act += width, begin = 0, width = expert.width, stride = expert.down_stride;
            weights = static_cast<const T*>(expert.down) + from * stride + chunk;
        });
    uint16_t* staged = shared_tiles();
#pragma unroll
    for (int m = 0; m < GroupedShape::M; m++) {
#pragma unroll
        for (int n = 0; n < GroupedShape::N; n++)
            stage_fragment<T, MOE_BLOCK>(staged, GroupedShape::row(m), GroupedShape::column(n), sums[m][n].x);
    }
    sync_block();
    const auto y_row = [&](int r) -> uint16_t* {
        if (rows[r] < 0) return nullptr;
        T* y = static_cast<T*>(q.y) + int64_t(rows[r]) * p.d;
        return &(y + place.column * MOE_BLOCK)->bits;
    };
    store_staged_rows<MOE_BLOCK, MOE_BLOCK, MOE_BLOCK_THREADS>(staged, p.d - place.column * MOE_BLOCK, y_row);
}

// ---- the sum over slots -----------------------------------------------------------------------------------------

// out[n] = the results of its slots in order, then that of the shared experts. One block per row.
template <class T>
OPENMYTHOS_DEVICE void sum_slots(const MoeGroupedArgs& q) {
    const MoeExpertsArgs& p = q.moe;
    const int row = block_index();
    bool bad = false;
    for (int j = 0; j < p.k; j++) bad |= expert_of(p, row, j) < 0;
    const T *routed = static_cast<const T*>(q.y) + int64_t(row) * p.k * p.d,
            *shared = static_cast<const T*>(q.y) + (int64_t(p.slots) + row) * p.d;
    for (int i = thread_index() * VEC; i < p.d; i += block_threads() * VEC) {
        float sum[VEC] = {};
        const auto add = [&](const T* part) {
            float x[VEC];
            load_vector(part + i, x);
#pragma unroll
            for (int v = 0; v < VEC; v++) sum[v] += x[v];
        };
#pragma unroll 4
        for (int j = 0; j < p.k; j++) add(routed + int64_t(j) * p.d);
        if (p.shared_count) add(shared);
        if (bad) {
#pragma unroll
            for (int v = 0; v < VEC; v++) sum[v] = __builtin_nanf("");
        }
        FastRow<T>::of(p.out, row).store(i, p.d - i, sum);
    }
}

}  // namespace openmythos::gpu
