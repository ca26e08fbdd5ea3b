#pragma once

// NVIDIA's part of fragments.h: mma.sync m16n8k16, two for each 16 x 16 product. Lane l holds elements of rows l / 4
// and l / 4 + 8 of a fragment, and pairs of adjacent columns of these rows of an accumulator.

namespace openmythos::gpu {

// c += a b of 16 x 8 x 16; registers in the order of PTX. Volatile, because all lanes must execute it together.
template <class T>
OPENMYTHOS_DEVICE void mma_m16n8k16(float* c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1) {
#define OPENMYTHOS_MMA(type)                                                            \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                       \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))
    if constexpr (__is_same(T, bf16))
        OPENMYTHOS_MMA("bf16");
    else
        OPENMYTHOS_MMA("f16");
#undef OPENMYTHOS_MMA
}

// ---- products of vectors in memory order -------------------------------------------------------------------------

// For mma_vectors: the row of the lane's vector, in either operand, and the first of its eight columns.
OPENMYTHOS_DEVICE int vector_row(int vector) { return lane_index() / 4 + 8 * vector; }
OPENMYTHOS_DEVICE int vector_column(int) { return 8 * (lane_index() % 4); }
// Row and column of the lane's i-th sum.
OPENMYTHOS_DEVICE int vector_m(int i) { return lane_index() / 4 + i % 4 / 2 * 8; }
OPENMYTHOS_DEVICE int vector_n(int i) { return i / 4 * 8 + lane_index() % 4 * 2 + i % 2; }

// acc[m][n] += sum over VECTOR_K columns k of a[m][k] b[n][k]. Each instruction takes 16 of the 32 columns: the first
// four of a lane's eight, then the last four.
template <class T>
OPENMYTHOS_DEVICE void mma_vectors(float (&acc)[8], const Words (&a)[2], const Words (&b)[2]) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
        for (int j = 0; j < 4; j += 2)
            mma_m16n8k16<T>(acc + 4 * n, a[0].w[j], a[1].w[j], a[0].w[j + 1], a[1].w[j + 1], b[n].w[j], b[n].w[j + 1]);
    }
}

// ---- fragments --------------------------------------------------------------------------------------------------

// w[0] and w[1] are columns 2 (lane % 4) and the next of both rows, w[2] and w[3] the same eight columns further.
struct Fragment {
    uint32_t w[4];
};

// The lane's i-th row of a fragment; row and column of its i-th sum.
OPENMYTHOS_DEVICE int fragment_row(int i) { return lane_index() / 4 + 8 * i; }
OPENMYTHOS_DEVICE int accumulator_row(int i) { return lane_index() / 4 + 8 * (i / 2 % 2); }
OPENMYTHOS_DEVICE int accumulator_column(int i) { return i / 4 * 8 + lane_index() % 4 * 2 + i % 2; }

template <class T>
OPENMYTHOS_DEVICE void mma(Accumulator& acc, const Fragment& a, const Fragment& b) {
#pragma unroll
    for (int n = 0; n < 2; n++) mma_m16n8k16<T>(acc.x + 4 * n, a.w[0], a.w[1], a.w[2], a.w[3], b.w[n], b.w[2 + n]);
}

// COUNT adjacent fragments from 16-byte aligned rows in global memory. A lane takes 8 contiguous columns of the 32 of
// two fragments, and 4 of a last single one.
template <int COUNT>
OPENMYTHOS_DEVICE void load_fragments(const uint16_t* const (&rows)[FRAGMENT_ROWS], Fragment (&fragments)[COUNT]) {
    const int part = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < FRAGMENT_ROWS; i++) {
#pragma unroll
        for (int c = 0; c + 1 < COUNT; c += 2) {
            Words x = load_once(rows[i] + c * TILE + part * 8);
            fragments[c].w[i] = x.w[0], fragments[c].w[2 + i] = x.w[1];
            fragments[c + 1].w[i] = x.w[2], fragments[c + 1].w[2 + i] = x.w[3];
        }
        if constexpr (COUNT % 2 == 1) {
            asm("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
                : "=r"(fragments[COUNT - 1].w[i]), "=r"(fragments[COUNT - 1].w[2 + i])
                : "l"(rows[i] + (COUNT - 1) * TILE + part * 4));
        }
    }
}

// The same for one fragment of rows that need not be aligned.
OPENMYTHOS_DEVICE void load_unaligned(const uint16_t* const (&rows)[FRAGMENT_ROWS], Fragment& fragment) {
#pragma unroll
    for (int i = 0; i < FRAGMENT_ROWS; i++) {
        const uint16_t* from = rows[i] + lane_index() % 4 * 4;
        fragment.w[i] = from[0] | uint32_t(from[1]) << 16, fragment.w[2 + i] = from[2] | uint32_t(from[3]) << 16;
    }
}

// From shared memory, K not permuted, since the other operand is a result of transpose().
OPENMYTHOS_DEVICE Fragment load_shared(const uint16_t* tile, int stride) {
    Fragment x;
#pragma unroll
    for (int i = 0; i < 4; i++)
        x.w[i] =
            *reinterpret_cast<const uint32_t*>(tile + fragment_row(i % 2) * stride + i / 2 * 8 + lane_index() % 4 * 2);
    return x;
}

OPENMYTHOS_DEVICE uint32_t transpose_8x8(uint32_t x) {
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

OPENMYTHOS_DEVICE Fragment transpose(const Fragment& x, uint16_t*) {
    return {{transpose_8x8(x.w[0]), transpose_8x8(x.w[2]), transpose_8x8(x.w[1]), transpose_8x8(x.w[3])}};
}

// Stores the sums of products with the c-th of COUNT transposed fragments to rows at `out`, each row times its factor.
// A lane holds four contiguous columns, the ones that load_fragments gave it.
template <int COUNT, class Keep>
OPENMYTHOS_DEVICE void store_accumulator(const Accumulator& acc, int c, float* out, int64_t stride,
                                         const float* factors, Keep keep) {
    const int part = lane_index() % 4;
    const int column = c + 1 == COUNT && COUNT % 2 == 1 ? c * TILE + part * 4 : c / 2 * 32 + part * 8 + c % 2 * 4;
#pragma unroll
    for (int i = 0; i < FRAGMENT_ROWS; i++) {
        int row = fragment_row(i);
        if (!keep(row)) continue;
        Words x;
#pragma unroll
        for (int j = 0; j < 4; j++)
            x.w[j] = __builtin_bit_cast(uint32_t, acc.x[j / 2 * 4 + 2 * i + j % 2] * factors[row]);
        store_words(out + row * stride + column, x);
    }
}

// ---- fragments of shared tiles ----------------------------------------------------------------------------------

// Lanes 8 i to 8 i + 7 point to the eight rows of the i-th 8 x 8 quarter.
OPENMYTHOS_DEVICE Fragment load_quarters(const uint16_t* row) {
    Fragment x;
    const uint32_t at = shared_address(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.w[0]), "=r"(x.w[1]), "=r"(x.w[2]), "=r"(x.w[3])
                 : "r"(at)
                 : "memory");
    return x;
}

// Columns 16 k to 16 k + 15 of 16 rows of a swizzled tile.
OPENMYTHOS_DEVICE Fragment load_tile(const uint16_t* tile, int row, int k) {
    const int lane = lane_index();
    return load_quarters(tile + swizzled(row + lane % TILE, 2 * k + lane / TILE));
}

// The same with offsets computed once: the compiler would compute and keep separate ones for every 16 rows.
struct TileOffsets {
    int at[CHUNKS / 2];
    OPENMYTHOS_DEVICE TileOffsets() {
        const int lane = opaque(lane_index());
#pragma unroll
        for (int k = 0; k < CHUNKS / 2; k++) at[k] = swizzled(lane % TILE, 2 * k + lane / TILE);
    }
    OPENMYTHOS_DEVICE Fragment load(const uint16_t* rows, int k) const { return load_quarters(rows + at[k]); }
};

// ---- row products -----------------------------------------------------------------------------------------------

// For the lane's i-th sum: which of the lane's rows it belongs to, and its column.
OPENMYTHOS_DEVICE int lane_row(int i) { return i / 2 % 2; }
OPENMYTHOS_DEVICE int lane_column(int i) { return accumulator_column(i); }
// True in one lane of those that share rows.
OPENMYTHOS_DEVICE bool leads_rows() { return lane_index() % 4 == 0; }
OPENMYTHOS_DEVICE float row_max(float x) {
    x = __builtin_fmaxf(x, from_lane_xor<1>(x));
    return __builtin_fmaxf(x, from_lane_xor<2>(x));
}
OPENMYTHOS_DEVICE float row_sum(float x) {
    x += from_lane_xor<1>(x);
    return x + from_lane_xor<2>(x);
}

template <class T>
OPENMYTHOS_DEVICE void mma_rows(Accumulator& acc, const Fragment& rows, const Fragment& columns) {
    mma<T>(acc, rows, columns);
}

// Rounds sums to 16 bits, as an operand of the next product.
template <class Pack>
OPENMYTHOS_DEVICE Fragment to_fragment(const Accumulator& acc, Pack pack) {
    Fragment x;
#pragma unroll
    for (int i = 0; i < 4; i++) x.w[i] = pack(acc.x[2 * i], acc.x[2 * i + 1]);
    return x;
}

// Loads 16 elements of each of the lane's rows, which must be 16-byte aligned.
OPENMYTHOS_DEVICE Fragment load_rows(const uint16_t* const (&rows)[LANE_ROWS]) {
    Fragment x;
#pragma unroll
    for (int i = 0; i < 4; i++)
        x.w[i] = *reinterpret_cast<const uint32_t*>(rows[i % 2] + i / 2 * 8 + lane_index() % 4 * 2);
    return x;
}
template <class Keep>
OPENMYTHOS_DEVICE void store_rows(const Fragment& x, uint16_t* const (&rows)[LANE_ROWS], Keep keep) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (keep(i % 2)) *reinterpret_cast<uint32_t*>(rows[i % 2] + i / 2 * 8 + lane_index() % 4 * 2) = x.w[i];
}

}  // namespace openmythos::gpu
