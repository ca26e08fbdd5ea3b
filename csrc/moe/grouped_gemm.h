#pragma once

#include "../core/gpu/block_product.h"
#include "../core/gpu/block_store.h"
#include "streamed.h"

// The experts of many rows of bfloat16 or float16: two grouped products of blocks of 128 x 128 and a sum over each
// row's slots. A shared expert is a group of all rows. The routing weight is in the activations, as for few rows.

namespace openmythos::gpu {

using MoeBlock = BlockShape<MOE_BLOCK, MOE_BLOCK, MOE_BLOCK_THREADS / WAVE, 4>;
// In the first product 16 rows of gate are followed by those of up for the same units, so that a lane gets both.
constexpr int MOE_UNITS = MOE_BLOCK / 2;
// A thread fetches the same chunk of every APART-th row of a slab.
constexpr int APART = MOE_BLOCK_THREADS / CHUNKS, PIECES = MOE_BLOCK / APART;
// Tiles whose blocks follow each other for one part of the columns: an expert's weights are read from memory once while
// its rows, a group of them, stay in the second cache.
constexpr int GROUP = 16;

// Blocks whose slabs a multiprocessor has room for: 97 KB each, of 228 KB on Hopper and Blackwell, else of 100 or 164.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1200)
constexpr int RESIDENT = 1;
#else
constexpr int RESIDENT = 2;
#endif

struct Place {
    int tile, column;
};

OPENMYTHOS_DEVICE Place place_of(int block, int tiles, int columns) {
    const int group = block / (GROUP * columns), rest = block - group * GROUP * columns;
    const int left = tiles - group * GROUP, size = left < GROUP ? left : GROUP;
    return {group * GROUP + rest % size, rest / size};
}

OPENMYTHOS_DEVICE int parts_of(int size, int part) { return (size + part - 1) / part; }

// sums += a . b over `steps` slabs, of the first `rows` rows. a(i) and b(i) say where this thread's i-th chunk comes
// from, null if it is zero; next() goes to the next slab.
template <class T, class A, class B, class Next>
OPENMYTHOS_DEVICE void multiply_block(Accumulator (&sums)[MoeBlock::M][MoeBlock::N], int rows, int steps,
                                      const void* somewhere, A a, B b, Next next) {
    constexpr int SLAB = MOE_BLOCK * BLOCK_K;
    uint16_t* mine = shared_tiles() + swizzled(thread_index() / CHUNKS, thread_index() % CHUNKS);
    AsyncCopy<2 * PIECES> pieces;
    const auto at = [&](int i, int stage) {
        return mine + stage * 2 * SLAB + i / PIECES * SLAB + i % PIECES * APART * BLOCK_K;
    };
    const auto begin = [&](int, int stage) {
#pragma unroll
        for (int i = 0; i < 2 * PIECES; i++) {
            const void* from = i < PIECES ? a(i) : b(i - PIECES);
            pieces.issue(i, at(i, stage), from ? from : somewhere, from);
        }
        next();
    };
    const auto land = [&](int stage) {
#pragma unroll
        for (int i = 0; i < 2 * PIECES; i++) pieces.commit(i, at(i, stage));
    };
    // Half a block at least is one wave's, or that of the four that share an instruction.
    const bool is_needed = uniform(MoeBlock::row(0) / 64 * 64) < rows;
    pipeline(steps, begin, land, [&](int stage) {
        if (!is_needed) return;
        const uint16_t* slab = shared_tiles() + stage * 2 * SLAB;
        multiply_tiles<T, MoeBlock>(sums, slab, slab + SLAB);
    });
    // The slabs are free.
    sync_block();
}

// ---- gate and up ------------------------------------------------------------------------------------------------

template <class T>
OPENMYTHOS_DEVICE void blocks_up(const MoeGroupedParams& q) {
    __shared__ const T* rows[MOE_BLOCK];  // of x; null past the end
    __shared__ float factors[MOE_BLOCK];
    const MoeParams& p = q.moe;
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
        const Place place = place_of(block - begin, parts_of(p.rows, MOE_BLOCK), parts_of(width, MOE_UNITS));
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
        const Place place = place_of(block - p.shared_blocks, q.tile_count, parts_of(width, MOE_UNITS));
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
    Accumulator sums[MoeBlock::M][MoeBlock::N] = {};
    multiply_block<T>(
        sums, end - first, parts_of(p.d, BLOCK_K), x,
        [&](int i) -> const T* {
            const T* from = rows[row + i * APART];
            return from && column < p.d ? from + column : nullptr;
        },
        [&](int i) -> const T* {
            const bool inside = mine + i * (APART / 2) < width && column < p.d;
            return inside ? weights + i * (APART / 2) * stride + column : nullptr;
        },
        [&] { column += BLOCK_K; });
    uint16_t* staged = shared_tiles();
#pragma unroll
    for (int m = 0; m < MoeBlock::M; m++) {
#pragma unroll
        for (int n = 0; n < MoeBlock::N; n += 2) {
            float hidden[8];
#pragma unroll
            for (int i = 0; i < 8; i++)
                hidden[i] =
                    swiglu(sums[m][n].x[i], sums[m][n + 1].x[i]) * factors[MoeBlock::row(m) + accumulator_row(i)];
            stage_fragment<T, MOE_UNITS>(staged, MoeBlock::row(m), MoeBlock::column(n) / 2, hidden);
        }
    }
    sync_block();
    store_staged_rows<MOE_BLOCK, MOE_UNITS, MOE_BLOCK_THREADS>(staged, width - unit, [&](int r) -> uint16_t* {
        return first + r < end ? &(act + (first + r) * act_stride + unit)->bits : nullptr;
    });
}

// ---- down -------------------------------------------------------------------------------------------------------

template <class T>
OPENMYTHOS_DEVICE void blocks_down(const MoeGroupedParams& q) {
    __shared__ int rows[MOE_BLOCK];  // of y; -1 past the end
    const MoeParams& p = q.moe;
    const int thread = thread_index(), columns = parts_of(p.d, MOE_BLOCK), row_tiles = parts_of(p.rows, MOE_BLOCK);
    const int dense = p.shared_count ? row_tiles * columns : 0, block = block_index();
    int first, end, width, steps = 0, s = 0, left;
    const T *act = static_cast<const T*>(p.act), *weights;
    int64_t stride, act_stride;
    Place place;
    if (block < dense) {
        // The shared experts' hidden units side by side are the depth.
        place = place_of(block, row_tiles, columns);
        first = place.tile * MOE_BLOCK, end = p.rows, left = p.shared_count;
        for (int each = 0; each < left; each++) steps += parts_of(p.shared[each].width, BLOCK_K);
        width = p.shared[0].width, weights = static_cast<const T*>(p.shared[0].down), stride = p.shared[0].down_stride;
        act += shared_offset(p, 0), act_stride = p.shared_width;
        if (thread < MOE_BLOCK) rows[thread] = first + thread < end ? p.slots + first + thread : -1;
    } else {
        place = place_of(block - dense, q.tile_count, columns);
        const int expert = uniform(q.tiles[place.tile].expert);
        if (expert < 0) return;
        first = uniform(q.tiles[place.tile].first), end = uniform(q.tiles[place.tile].end), left = 1;
        width = p.width, steps = parts_of(width, BLOCK_K), act_stride = width;
        weights = static_cast<const T*>(p.down) + expert * p.down_strides[0], stride = p.down_strides[1];
        if (thread < MOE_BLOCK) rows[thread] = first + thread < end ? q.slots[first + thread] : -1;
    }
    const int row = thread / CHUNKS, chunk = thread % CHUNKS * CHUNK, from = place.column * MOE_BLOCK + row;
    int begin = 0;  // of the slab
    act += (first + row) * act_stride + chunk;
    weights += from * stride + chunk;
    Accumulator sums[MoeBlock::M][MoeBlock::N] = {};
    multiply_block<T>(
        sums, end - first, steps, p.act,
        [&](int i) -> const T* {
            return first + row + i * APART < end && begin + chunk < width ? act + i * APART * act_stride + begin
                                                                          : nullptr;
        },
        [&](int i) -> const T* {
            return from + i * APART < p.d && begin + chunk < width ? weights + i * APART * stride + begin : nullptr;
        },
        [&] {
            begin += BLOCK_K;
            if (begin < width || s + 1 >= left) return;
            const MoeShared& expert = p.shared[++s];
            act += width, begin = 0, width = expert.width, stride = expert.down_stride;
            weights = static_cast<const T*>(expert.down) + from * stride + chunk;
        });
    uint16_t* staged = shared_tiles();
#pragma unroll
    for (int m = 0; m < MoeBlock::M; m++) {
#pragma unroll
        for (int n = 0; n < MoeBlock::N; n++)
            stage_fragment<T, MOE_BLOCK>(staged, MoeBlock::row(m), MoeBlock::column(n), sums[m][n].x);
    }
    sync_block();
    store_staged_rows<MOE_BLOCK, MOE_BLOCK, MOE_BLOCK_THREADS>(staged, p.d - place.column * MOE_BLOCK,
                                                               [&](int r) -> uint16_t* {
                                                                   if (rows[r] < 0) return nullptr;
                                                                   T* y = static_cast<T*>(q.y) + int64_t(rows[r]) * p.d;
                                                                   return &(y + place.column * MOE_BLOCK)->bits;
                                                               });
}

// ---- the sum ----------------------------------------------------------------------------------------------------

// out[n] = the sum of what its slots and the shared experts gave, in order. A block has a row.
template <class T>
OPENMYTHOS_DEVICE void slots_sum(const MoeGroupedParams& q) {
    const MoeParams& p = q.moe;
    const int row = block_index();
    bool bad = false;
    for (int j = 0; j < p.k; j++) bad |= expert_of(p, row, j) < 0;
    const T *mine = static_cast<const T*>(q.y) + int64_t(row) * p.k * p.d,
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
        for (int j = 0; j < p.k; j++) add(mine + int64_t(j) * p.d);
        if (p.shared_count) add(shared);
        if (bad) {
#pragma unroll
            for (int v = 0; v < VEC; v++) sum[v] = __builtin_nanf("");
        }
        FastRow<T>::of(p.out, row).store(i, p.d - i, sum);
    }
}

}  // namespace openmythos::gpu
