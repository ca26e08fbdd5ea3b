#pragma once

#include "streamed.h"

// Slots sorted by expert, by counting: stable, without atomics, without the host. A block counts a chunk of the slots;
// a block of the second launch adds up all counts, so that it knows where its chunk's slots go, and cuts each expert's
// positions into tiles. Slots whose id is no expert have no position.

namespace openmythos::gpu {

constexpr int SORT_THREADS = MOE_BLOCK_THREADS, SORT_OWN = MOE_MAX_EXPERTS / SORT_THREADS;

// Of the slots that the threads look at, one each: how many chose this thread's expert, and how many of those precede.
struct Rank {
    int all, earlier;
};

OPENMYTHOS_DEVICE Rank rank_of(int expert, int (&experts)[SORT_THREADS]) {
    sync_block();
    experts[thread_index()] = expert;
    sync_block();
    Rank rank{0, 0};
#pragma unroll 8
    for (int t = 0; t < SORT_THREADS; t += 4) {
        const Words four = *reinterpret_cast<const Words*>(experts + t);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const bool same = int(four.w[j]) == expert;
            rank.all += same, rank.earlier += same && t + j < thread_index();
        }
    }
    return rank;
}

// Goes through the slots of this block's chunk, one a thread at a time; -1 is no expert.
template <class Visit>
OPENMYTHOS_DEVICE void visit_chunk(const MoeGroupedParams& p, Visit visit) {
    for (int i = 0; i < p.chunk; i += SORT_THREADS) {
        const int64_t slot = int64_t(block_index()) * p.chunk + i + thread_index();
        visit(int(slot), slot < p.moe.slots ? expert_of(p.moe, int(slot)) : -1);
    }
}

OPENMYTHOS_DEVICE void sort_count(const MoeGroupedParams& p) {
    alignas(16) __shared__ int experts[SORT_THREADS];
    __shared__ int counts[MOE_MAX_EXPERTS];
    for (int e = thread_index(); e < p.moe.experts; e += SORT_THREADS) counts[e] = 0;
    visit_chunk(p, [&](int, int expert) {
        const Rank rank = rank_of(expert, experts);
        if (expert >= 0 && rank.earlier == 0) counts[expert] += rank.all;
    });
    sync_block();
    for (int e = thread_index(); e < p.moe.experts; e += SORT_THREADS)
        p.counts[int64_t(block_index()) * p.moe.experts + e] = counts[e];
}

// The sum over the lanes before this one; `all` becomes that over the wave.
template <int MASK = 1>
OPENMYTHOS_DEVICE int wave_before(int& all) {
    if constexpr (MASK < WAVE) {
        const int other = __builtin_bit_cast(int, from_lane_xor<MASK>(__builtin_bit_cast(float, all)));
        const int before = lane_index() & MASK ? other : 0;
        all += other;
        return before + wave_before<2 * MASK>(all);
    }
    return 0;
}

// The sum over the threads before this one.
OPENMYTHOS_DEVICE int block_before(int x, int (&waves)[SORT_THREADS / WAVE]) {
    int before = wave_before(x);
    sync_block();
    if (lane_index() == 0) waves[wave_index()] = x;
    sync_block();
    for (int w = 0; w < wave_index(); w++) before += waves[w];
    return before;
}

OPENMYTHOS_DEVICE void sort_place(const MoeGroupedParams& p) {
    alignas(16) __shared__ int experts[SORT_THREADS];
    __shared__ int waves[SORT_THREADS / WAVE];
    // Of each expert: its slots, its first position, its first tile, and where this block's next slot of it goes.
    __shared__ int counts[MOE_MAX_EXPERTS], firsts[MOE_MAX_EXPERTS], tiles[MOE_MAX_EXPERTS], next[MOE_MAX_EXPERTS];
    const int thread = thread_index();
    for (int e = thread; e < MOE_MAX_EXPERTS; e += SORT_THREADS) {
        int all = 0, earlier = 0;
        if (e < p.moe.experts) {
#pragma unroll 8
            for (int c = 0; c < p.chunks; c++) {
                const int count = p.counts[int64_t(c) * p.moe.experts + e];
                all += count, earlier += c < block_index() ? count : 0;
            }
        }
        counts[e] = all, next[e] = earlier;
    }
    sync_block();
    int slots = 0, pieces = 0;
    const auto pieces_of = [&](int e) { return (counts[e] + MOE_BLOCK - 1) / MOE_BLOCK; };
    for (int e = thread * SORT_OWN; e < (thread + 1) * SORT_OWN; e++) slots += counts[e], pieces += pieces_of(e);
    slots = block_before(slots, waves), pieces = block_before(pieces, waves);
    for (int e = thread * SORT_OWN; e < (thread + 1) * SORT_OWN; e++) {
        firsts[e] = slots, tiles[e] = pieces, next[e] += slots;
        slots += counts[e], pieces += pieces_of(e);
    }
    sync_block();
    for (int t = block_index() * SORT_THREADS + thread; t < p.tile_count; t += p.chunks * SORT_THREADS) {
        // The last expert whose tiles begin at t or before.
        int e = 0;
        for (int step = MOE_MAX_EXPERTS / 2; step; step /= 2) e += tiles[e + step] <= t ? step : 0;
        const int first = firsts[e] + (t - tiles[e]) * MOE_BLOCK, end = firsts[e] + counts[e];
        p.tiles[t] = {first < end ? e : -1, first, first + MOE_BLOCK < end ? first + MOE_BLOCK : end, 0};
    }
    visit_chunk(p, [&](int slot, int expert) {
        const Rank rank = rank_of(expert, experts);
        const int first = expert < 0 ? 0 : next[expert];
        sync_block();
        if (expert < 0) return;
        if (rank.earlier == 0) next[expert] = first + rank.all;
        p.slots[first + rank.earlier] = slot;
    });
}

}  // namespace openmythos::gpu
