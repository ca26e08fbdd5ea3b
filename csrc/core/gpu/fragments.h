#pragma once

#include "shared_tiles.h"

// Matrix products of one wave: mma.sync m16n8k16 on NVIDIA, WMMA on gfx11, both on 16-bit elements with float32 sums.
//
// A Fragment is 16 rows of 16 elements spread over a wave; an Accumulator is 16 x 16 sums. mma(acc, a, b) computes
// acc[i][j] += a[i] . b[j]; both operands have K innermost and the same vendor-specific layout. K may be permuted in
// it, because A and B use the same permutation; on NVIDIA this makes a lane's loads 16 contiguous bytes.
// store_accumulator() undoes the permutation where a fragment's K became columns of the result.
//
// "Row products" keep all sums of a row in few lanes, as a softmax over rows needs. They use mma_rows(acc, rows,
// columns) instead of mma(); a lane holds LANE_ROWS rows of the accumulator.

namespace openmythos::gpu {

constexpr int TILE = 16;
constexpr int VECTOR_K = Vendor::VECTOR_K, FRAGMENT_ROWS = Vendor::FRAGMENT_ROWS, LANE_ROWS = Vendor::FRAGMENT_ROWS;

struct Accumulator {
    float x[8];
};

}  // namespace openmythos::gpu

#include OPENMYTHOS_MMA_HEADER

namespace openmythos::gpu {

// The accumulators are final here: stops the compiler from moving later accesses before this point.
template <int N>
OPENMYTHOS_DEVICE void pin(Accumulator (&accumulators)[N]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 8; i++) pin(accumulators[n].x[i]);
    }
}

}  // namespace openmythos::gpu
