#pragma once

#include "block_tiles.h"

// Products in which every wave owns 16 rows of the result: a lane has numbers of few rows, so that what there is of a
// row only once, as the maximum of a softmax, is in a register. On gfx11 a lane holds one column of a Sum, and so the
// rows are columns there: multiply() gets its operands exchanged.

namespace openmythos::gpu {

#ifdef OPENMYTHOS_HIP

constexpr int OWN_ROWS = 1;
// Which of the lane's rows number i of a Sum is in, and its column.
OPENMYTHOS_DEVICE int own_row(int) { return 0; }
OPENMYTHOS_DEVICE int own_column(int i) { return sum_row(i); }
// The lane that speaks for its rows.
OPENMYTHOS_DEVICE bool leads_rows() { return lane_index() < TILE; }
OPENMYTHOS_DEVICE float over_row_max(float x) { return __builtin_fmaxf(x, from_lane_xor<16>(x)); }
OPENMYTHOS_DEVICE float over_row_sum(float x) { return x + from_lane_xor<16>(x); }

template <class T>
OPENMYTHOS_DEVICE void multiply_rows(Sum& sum, const Operand& rows, const Operand& columns) {
    multiply<T>(sum, columns, rows);
}

// A lane has every other number of its row, and lane ^ 16 those between.
template <class Pack>
OPENMYTHOS_DEVICE Operand to_operand(const Sum& sum, Pack pack) {
    const uint32_t pick = lane_index() < TILE ? 0x05040100 : 0x01000504;
    Operand x;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint32_t mine = pack(sum.x[2 * j], sum.x[2 * j + 1]);
        const uint32_t other = __builtin_bit_cast(uint32_t, from_lane_xor<16>(__builtin_bit_cast(float, mine)));
#pragma unroll
        for (int k = 0; k < 2; k++)
            x.words[j / 2].w[j % 2 * 2 + k] = __builtin_amdgcn_perm(other, mine, pick + k * 0x02020202);
    }
    return x;
}

// 16 numbers of the lane's rows, in the order of memory, from 16 bytes on.
OPENMYTHOS_DEVICE Operand load_rows(const uint16_t* const (&rows)[OWN_ROWS]) {
    return {{load_shared_by_blocks(rows[0]), load_shared_by_blocks(rows[0] + 8)}};
}
template <class Keep>
OPENMYTHOS_DEVICE void store_rows(const Operand& x, uint16_t* const (&rows)[OWN_ROWS], Keep keep) {
    const bool upper = lane_index() >= TILE;
    Words half;
#pragma unroll
    for (int j = 0; j < 4; j++) half.w[j] = upper ? x.words[1].w[j] : x.words[0].w[j];
    if (keep(0)) store_words(rows[0] + (upper ? 8 : 0), half);
}

#else

constexpr int OWN_ROWS = 2;
OPENMYTHOS_DEVICE int own_row(int i) { return i / 2 % 2; }
OPENMYTHOS_DEVICE int own_column(int i) { return sum_column(i); }
OPENMYTHOS_DEVICE bool leads_rows() { return lane_index() % 4 == 0; }
OPENMYTHOS_DEVICE float over_row_max(float x) {
    x = __builtin_fmaxf(x, from_lane_xor<1>(x));
    return __builtin_fmaxf(x, from_lane_xor<2>(x));
}
OPENMYTHOS_DEVICE float over_row_sum(float x) {
    x += from_lane_xor<1>(x);
    return x + from_lane_xor<2>(x);
}

template <class T>
OPENMYTHOS_DEVICE void multiply_rows(Sum& sum, const Operand& rows, const Operand& columns) {
    multiply<T>(sum, rows, columns);
}

template <class Pack>
OPENMYTHOS_DEVICE Operand to_operand(const Sum& sum, Pack pack) {
    Operand x;
#pragma unroll
    for (int i = 0; i < 4; i++) x.w[i] = pack(sum.x[2 * i], sum.x[2 * i + 1]);
    return x;
}

OPENMYTHOS_DEVICE Operand load_rows(const uint16_t* const (&rows)[OWN_ROWS]) {
    Operand x;
#pragma unroll
    for (int i = 0; i < 4; i++)
        x.w[i] = *reinterpret_cast<const uint32_t*>(rows[i % 2] + i / 2 * 8 + lane_index() % 4 * 2);
    return x;
}
template <class Keep>
OPENMYTHOS_DEVICE void store_rows(const Operand& x, uint16_t* const (&rows)[OWN_ROWS], Keep keep) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (keep(i % 2)) *reinterpret_cast<uint32_t*>(rows[i % 2] + i / 2 * 8 + lane_index() % 4 * 2) = x.w[i];
}

#endif

// The compiler moves nothing past this.
OPENMYTHOS_DEVICE void keep_order() {
#ifdef OPENMYTHOS_HIP
    __builtin_amdgcn_sched_barrier(0);
#endif
}

// The row of the wave's 16 that is the lane's r-th.
OPENMYTHOS_DEVICE int wave_row(int r) { return tile_row(r); }

// Where a lane finds its part of an operand in 16 rows of a slab. The compiler would work it out for every 16 rows
// anew, and keep that in as many registers.
struct OperandPlaces {
#ifdef OPENMYTHOS_HIP
    int at[CHUNKS];
    OPENMYTHOS_DEVICE OperandPlaces() {
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) at[c] = forgotten(slab_at(lane_index() % TILE, c));
    }
    OPENMYTHOS_DEVICE Operand load(const uint16_t* rows, int k) const {
        Operand x;
#pragma unroll
        for (int j = 0; j < 2; j++) x.words[j] = *reinterpret_cast<const Words*>(rows + at[2 * k + j]);
        return x;
    }
#else
    int at[CHUNKS / 2];
    OPENMYTHOS_DEVICE OperandPlaces() {
        const int lane = forgotten(lane_index());
#pragma unroll
        for (int k = 0; k < CHUNKS / 2; k++) at[k] = slab_at(lane % TILE, 2 * k + lane / TILE);
    }
    OPENMYTHOS_DEVICE Operand load(const uint16_t* rows, int k) const { return load_chunks(rows + at[k]); }
#endif
};

// sums += rows . those of slabs, which lie one after the other, 16 N rows each, and are 16 K numbers deep in all. With
// wgmma the sums are nobody's before wait_for_slabs().
template <class T, int N, int K>
OPENMYTHOS_DEVICE void begin_slabs(Sum (&sums)[N], const Operand (&rows)[K], const uint16_t* slabs) {
    constexpr int EACH = DEPTH / TILE;
#ifdef OPENMYTHOS_WGMMA
    begin_products();
#pragma unroll
    for (int k = 0; k < K; k++)
        begin_product<T>(sums, rows[k], descriptor(slabs + k / EACH * N * TILE * DEPTH, 0, k % EACH));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
    // A few operands are on their way, and no more, which the compiler would like to keep registers for.
    constexpr int AHEAD = 2;
    const OperandPlaces places;
    const auto load = [&](int j) {
        return places.load(slabs + (j / N / EACH * N + j % N) * TILE * DEPTH, j / N % EACH);
    };
    Operand columns[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; j++) columns[j] = load(j);
#pragma unroll
    for (int j = 0; j < K * N; j++) {
        const Operand now = columns[j % AHEAD];
        multiply_rows<T>(sums[j % N], rows[j / N], now);
        if (j + AHEAD < K * N) columns[j % AHEAD] = load(j + AHEAD);
        keep_order();
    }
    hold(sums);
#endif
}

// All products of slabs are finished; these are the sums of the last ones.
template <int N>
OPENMYTHOS_DEVICE void wait_for_slabs([[maybe_unused]] Sum (&sums)[N]) {
#ifdef OPENMYTHOS_WGMMA
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    hold(sums);
#endif
}

}  // namespace openmythos::gpu
