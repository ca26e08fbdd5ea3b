#pragma once

#include "fragments.h"

// Writes a block's sums to rows in global memory through shared memory, whose tiles are no longer needed, so that each
// thread stores whole chunks.

namespace openmythos::gpu {

// Offset of a column in a staged row of COLUMNS elements, such that writing eight rows has no bank conflicts.
template <int COLUMNS>
OPENMYTHOS_DEVICE int staged_offset(int row, int column) {
    return row * COLUMNS + (column / CHUNK ^ row % 8) * CHUNK + column % CHUNK;
}

// Stages this lane's elements of the 16 x 16 fragment at (row, column).
template <class T, int COLUMNS>
OPENMYTHOS_DEVICE void stage_fragment(uint16_t* staged, int row, int column, const float (&x)[8]) {
    if constexpr (Vendor::ADJACENT_COLUMNS == 2) {
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            const uint32_t pair = from_float<T>(x[i]).bits | uint32_t(from_float<T>(x[i + 1]).bits) << 16;
            uint16_t* to = staged + staged_offset<COLUMNS>(row + accumulator_row(i), column + accumulator_column(i));
            *reinterpret_cast<uint32_t*>(to) = pair;
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            staged[staged_offset<COLUMNS>(row + accumulator_row(i), column + accumulator_column(i))] =
                from_float<T>(x[i]).bits;
    }
}

// Stores the first `columns` columns, a multiple of CHUNK, of ROWS staged rows. row(r) is the destination of row r, or
// null to skip it.
template <int ROWS, int COLUMNS, int THREADS, class Row>
OPENMYTHOS_DEVICE void store_staged_rows(const uint16_t* staged, int columns, Row row) {
    static_assert(ROWS * COLUMNS % (THREADS * CHUNK) == 0);
#pragma unroll
    for (int i = 0; i < ROWS * COLUMNS / CHUNK / THREADS; i++) {
        const int x = i * THREADS + thread_index(), r = x / (COLUMNS / CHUNK), column = x % (COLUMNS / CHUNK) * CHUNK;
        uint16_t* to = row(r);
        if (to && column < columns)
            store_words(to + column, *reinterpret_cast<const Words*>(staged + staged_offset<COLUMNS>(r, column)));
    }
}

}  // namespace openmythos::gpu
