#pragma once

// AMD's part of fragments.h: WMMA 16 x 16 x 16 of gfx11. A lane holds row lane % 16 of a fragment; both halves of the
// wave hold the same. It holds every other row of one column of an accumulator; row products swap the operands, so that
// this column is a row.

namespace openmythos::gpu {

// ---- products of vectors in memory order -------------------------------------------------------------------------

// For mma_vectors: the row of the lane's vector, in either operand, and the first of its eight columns.
OPENMYTHOS_DEVICE int vector_row(int) { return lane_index() % 16; }
OPENMYTHOS_DEVICE int vector_column(int vector) { return 8 * vector; }
// Row and column of the lane's i-th sum.
OPENMYTHOS_DEVICE int vector_m(int i) { return 2 * i + lane_index() / 16; }
OPENMYTHOS_DEVICE int vector_n(int) { return lane_index() % 16; }

// acc[m][n] += sum over VECTOR_K columns k of a[m][k] b[n][k].
template <class T>
OPENMYTHOS_DEVICE void mma_vectors(float (&acc)[8], const Words (&a)[2], const Words (&b)[2]) {
    typedef float result __attribute__((vector_size(32)));
    result c = __builtin_bit_cast(result, acc);
    if constexpr (__is_same(T, bf16)) {
        typedef short operand __attribute__((vector_size(32)));
        c = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(__builtin_bit_cast(operand, a), __builtin_bit_cast(operand, b),
                                                        c);
    } else {
        typedef _Float16 operand __attribute__((vector_size(32)));
        c = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(__builtin_bit_cast(operand, a), __builtin_bit_cast(operand, b),
                                                       c);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) acc[i] = c[i];
}

// ---- fragments --------------------------------------------------------------------------------------------------

struct Fragment {
    Words words[2];
};

// The lane's i-th row of a fragment; row and column of its i-th sum.
OPENMYTHOS_DEVICE int fragment_row(int) { return lane_index() % TILE; }
OPENMYTHOS_DEVICE int accumulator_row(int i) { return 2 * i + lane_index() / TILE; }
OPENMYTHOS_DEVICE int accumulator_column(int) { return lane_index() % TILE; }

template <class T>
OPENMYTHOS_DEVICE void mma(Accumulator& acc, const Fragment& a, const Fragment& b) {
    mma_vectors<T>(acc.x, a.words, b.words);
}

// COUNT adjacent fragments from 16-byte aligned rows in global memory.
template <int COUNT>
OPENMYTHOS_DEVICE void load_fragments(const uint16_t* const (&rows)[FRAGMENT_ROWS], Fragment (&fragments)[COUNT]) {
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
#pragma unroll
        for (int j = 0; j < 2; j++) fragments[c].words[j] = load_cached(rows[0] + c * TILE + 8 * j);
    }
}

// The same for one fragment of rows that need not be aligned.
OPENMYTHOS_DEVICE void load_unaligned(const uint16_t* const (&rows)[FRAGMENT_ROWS], Fragment& fragment) {
#pragma unroll
    for (int j = 0; j < 8; j++) fragment.words[j / 4].w[j % 4] = rows[0][2 * j] | uint32_t(rows[0][2 * j + 1]) << 16;
}

// From shared memory, K not permuted, since the other operand is a result of transpose().
OPENMYTHOS_DEVICE Fragment load_shared(const uint16_t* tile, int stride) {
    const Words* from = reinterpret_cast<const Words*>(tile + lane_index() % TILE * stride);
    return {{from[0], from[1]}};
}

// `scratch` belongs to this wave.
OPENMYTHOS_DEVICE Fragment transpose(const Fragment& x, uint16_t* scratch) {
    const int lane = lane_index(), row = lane % TILE, upper = lane / TILE;
    // Both halves of the wave hold the row, and each stores half of it.
    Words half;
#pragma unroll
    for (int j = 0; j < 4; j++) half.w[j] = upper ? x.words[1].w[j] : x.words[0].w[j];
    sync_wave();
    store_words(scratch + row * TILE + upper * 8, half);
    sync_wave();
    Fragment y;
#pragma unroll
    for (int j = 0; j < 8; j++)
        y.words[j / 4].w[j % 4] = scratch[2 * j * TILE + row] | uint32_t(scratch[(2 * j + 1) * TILE + row]) << 16;
    return y;
}

// Stores the sums of products with the c-th of COUNT transposed fragments to rows at `out`, each row times its factor.
template <int COUNT, class Keep>
OPENMYTHOS_DEVICE void store_accumulator(const Accumulator& acc, int c, float* out, int64_t stride,
                                         const float* factors, Keep keep) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int row = accumulator_row(i);
        if (keep(row)) out[row * stride + c * TILE + accumulator_column(i)] = acc.x[i] * factors[row];
    }
}

// ---- fragments of shared tiles ----------------------------------------------------------------------------------

// Columns 16 k to 16 k + 15 of 16 rows of a swizzled tile.
OPENMYTHOS_DEVICE Fragment load_tile(const uint16_t* tile, int row, int k) {
    const int lane = lane_index();
    Fragment x;
#pragma unroll
    for (int j = 0; j < 2; j++)
        x.words[j] = *reinterpret_cast<const Words*>(tile + swizzled(row + lane % TILE, 2 * k + j));
    return x;
}

// The same with offsets computed once: the compiler would compute and keep separate ones for every 16 rows.
struct TileOffsets {
    int at[CHUNKS];
    OPENMYTHOS_DEVICE TileOffsets() {
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) at[c] = opaque(swizzled(lane_index() % TILE, c));
    }
    OPENMYTHOS_DEVICE Fragment load(const uint16_t* rows, int k) const {
        Fragment x;
#pragma unroll
        for (int j = 0; j < 2; j++) x.words[j] = *reinterpret_cast<const Words*>(rows + at[2 * k + j]);
        return x;
    }
};

// ---- row products -----------------------------------------------------------------------------------------------

// For the lane's i-th sum: which of the lane's rows it belongs to, and its column.
OPENMYTHOS_DEVICE int lane_row(int) { return 0; }
OPENMYTHOS_DEVICE int lane_column(int i) { return accumulator_row(i); }
// True in one lane of those that share rows.
OPENMYTHOS_DEVICE bool leads_rows() { return lane_index() < TILE; }
OPENMYTHOS_DEVICE float row_max(float x) { return __builtin_fmaxf(x, from_lane_xor<16>(x)); }
OPENMYTHOS_DEVICE float row_sum(float x) { return x + from_lane_xor<16>(x); }

template <class T>
OPENMYTHOS_DEVICE void mma_rows(Accumulator& acc, const Fragment& rows, const Fragment& columns) {
    mma<T>(acc, columns, rows);
}

// Rounds sums to 16 bits, as an operand of the next product. A lane holds every other element of its row, lane ^ 16 the
// ones between.
template <class Pack>
OPENMYTHOS_DEVICE Fragment to_fragment(const Accumulator& acc, Pack pack) {
    const uint32_t pick = lane_index() < TILE ? 0x05040100 : 0x01000504;
    Fragment x;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint32_t mine = pack(acc.x[2 * j], acc.x[2 * j + 1]);
        const uint32_t other = __builtin_bit_cast(uint32_t, from_lane_xor<16>(__builtin_bit_cast(float, mine)));
#pragma unroll
        for (int k = 0; k < 2; k++)
            x.words[j / 2].w[j % 2 * 2 + k] = __builtin_amdgcn_perm(other, mine, pick + k * 0x02020202);
    }
    return x;
}

// Loads 16 elements of each of the lane's rows, which must be 16-byte aligned.
OPENMYTHOS_DEVICE Fragment load_rows(const uint16_t* const (&rows)[LANE_ROWS]) {
    return {{load_cached(rows[0]), load_cached(rows[0] + 8)}};
}
template <class Keep>
OPENMYTHOS_DEVICE void store_rows(const Fragment& x, uint16_t* const (&rows)[LANE_ROWS], Keep keep) {
    const bool upper = lane_index() >= TILE;
    // Both halves of the wave hold the row, and each stores half of it.
    Words half;
#pragma unroll
    for (int j = 0; j < 4; j++) half.w[j] = upper ? x.words[1].w[j] : x.words[0].w[j];
    if (keep(0)) store_words(rows[0] + (upper ? 8 : 0), half);
}

}  // namespace openmythos::gpu
