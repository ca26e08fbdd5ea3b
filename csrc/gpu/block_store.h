#pragma once

#include "block_tiles.h"

// Results of a block on their way from sums to rows in memory: through the shared memory that the slabs no longer need,
// so that whole chunks are written side by side.

namespace openmythos::gpu {

// Where a column of a row of COLUMNS numbers is; eight rows are written without bank conflicts.
template <int COLUMNS>
OPENMYTHOS_DEVICE int staged_at(int row, int column) {
    return row * COLUMNS + (column / CHUNK ^ row % 8) * CHUNK + column % CHUNK;
}

// A lane's numbers of the tile of 16 x 16 that begins at this row and column.
template <class T, int COLUMNS>
OPENMYTHOS_DEVICE void stage(uint16_t* staged, int row, int column, const float (&x)[8]) {
#ifdef OPENMYTHOS_HIP
#pragma unroll
    for (int i = 0; i < 8; i++)
        staged[staged_at<COLUMNS>(row + sum_row(i), column + sum_column(i))] = from_float<T>(x[i]).bits;
#else
    // A lane's columns come in pairs.
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
        const uint32_t pair = from_float<T>(x[i]).bits | uint32_t(from_float<T>(x[i + 1]).bits) << 16;
        uint16_t* to = staged + staged_at<COLUMNS>(row + sum_row(i), column + sum_column(i));
        *reinterpret_cast<uint32_t*>(to) = pair;
    }
#endif
}

// The first `columns` columns of ROWS rows, a multiple of CHUNK: row(r) is where row r goes, null if nowhere.
template <int ROWS, int COLUMNS, int THREADS, class Row>
OPENMYTHOS_DEVICE void store_staged(const uint16_t* staged, int columns, Row row) {
    static_assert(ROWS * COLUMNS % (THREADS * CHUNK) == 0);
#pragma unroll
    for (int i = 0; i < ROWS * COLUMNS / CHUNK / THREADS; i++) {
        const int x = i * THREADS + thread_index(), r = x / (COLUMNS / CHUNK), column = x % (COLUMNS / CHUNK) * CHUNK;
        uint16_t* to = row(r);
        if (to && column < columns)
            store_words(to + column, *reinterpret_cast<const Words*>(staged + staged_at<COLUMNS>(r, column)));
    }
}

}  // namespace openmythos::gpu
