#pragma once

#include "cuda/wgmma.h"
#include "fragments.h"

// A block's product of shared tiles: sums[i][j] += a[i] . b[j], K innermost in both operands. By wgmma where available,
// else each wave multiplies fragments of its own.

namespace openmythos::gpu {

// WAVES waves divide ROWS x COLUMNS sums into M x N fragments each, ACROSS waves per row of waves.
template <int ROWS, int COLUMNS, int WAVES, int ACROSS>
struct BlockShape {
#ifdef OPENMYTHOS_WGMMA
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

// This wave's sums += its rows of tile a . its rows of tile b.
template <class T, class Shape>
OPENMYTHOS_DEVICE void multiply_tiles(Accumulator (&sums)[Shape::M][Shape::N], const uint16_t* a, const uint16_t* b) {
#ifdef OPENMYTHOS_WGMMA
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < BLOCK_K / TILE; k++) {
#pragma unroll
        for (int m = 0; m < Shape::M; m++)
            wgmma<T>(sums[m], descriptor(a, Shape::row(m) / 64 * 64, k), descriptor(b, 0, k));
    }
    wgmma_commit_group();
    wgmma_wait();
#pragma unroll
    for (int m = 0; m < Shape::M; m++) pin(sums[m]);
#else
#pragma unroll
    for (int k = 0; k < BLOCK_K / TILE; k++) {
        Fragment rows[Shape::M];
#pragma unroll
        for (int m = 0; m < Shape::M; m++) rows[m] = load_tile(a, Shape::row(m), k);
#pragma unroll
        for (int n = 0; n < Shape::N; n++) {
            const Fragment columns = load_tile(b, Shape::column(n), k);
#pragma unroll
            for (int m = 0; m < Shape::M; m++) mma<T>(sums[m][n], rows[m], columns);
        }
    }
#endif
}

}  // namespace openmythos::gpu
