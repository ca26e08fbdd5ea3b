#pragma once

#include "cuda/wgmma.h"
#include "fragments.h"

// Products in which each wave owns 16 rows of the result, so that per-row values, such as a softmax's maximum, stay in
// registers.

namespace openmythos::gpu {

// Starts sums += rows . tiles^T: `tiles` are consecutive shared tiles of 16 N rows that together hold 16 K columns. Do
// not touch `sums` or `rows` until wait_row_products(); with wgmma this is asynchronous.
template <class T, int N, int K>
OPENMYTHOS_DEVICE void start_row_products(Accumulator (&sums)[N], const Fragment (&rows)[K], const uint16_t* tiles) {
    constexpr int EACH = BLOCK_K / TILE;
#ifdef OPENMYTHOS_WGMMA
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < K; k++) wgmma<T>(sums, rows[k], descriptor(tiles + k / EACH * N * TILE * BLOCK_K, 0, k % EACH));
    wgmma_commit_group();
#else
    // Two operands are loaded ahead; the compiler would load more and run out of registers.
    constexpr int AHEAD = 2;
    const TileOffsets offsets;
    const auto load = [&](int j) {
        return offsets.load(tiles + (j / N / EACH * N + j % N) * TILE * BLOCK_K, j / N % EACH);
    };
    Fragment columns[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; j++) columns[j] = load(j);
#pragma unroll
    for (int j = 0; j < K * N; j++) {
        const Fragment now = columns[j % AHEAD];
        mma_rows<T>(sums[j % N], rows[j / N], now);
        if (j + AHEAD < K * N) columns[j % AHEAD] = load(j + AHEAD);
        scheduling_barrier();
    }
    pin(sums);
#endif
}

// Completes all row products of the wave; `sums` belong to the last one.
template <int N>
OPENMYTHOS_DEVICE void wait_row_products([[maybe_unused]] Accumulator (&sums)[N]) {
#ifdef OPENMYTHOS_WGMMA
    wgmma_wait();
    pin(sums);
#endif
}

}  // namespace openmythos::gpu
