#pragma once

#include "routing.h"

// Counting sort of slots by expert: stable, without atomics, without synchronising with the host. In the first launch
// each block counts the slots of one chunk. In the second each block adds up all counts, places the slots of its chunk,
// and divides the experts' positions into tiles. Slots with an id out of range get no position.

namespace openmythos::gpu {

constexpr int SORT_THREADS = MOE_BLOCK_THREADS, EXPERTS_PER_THREAD = MOE_MAX_EXPERTS / SORT_THREADS;

// Among the block's slots, one per thread: the number with this thread's expert, and how many of those come earlier.
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

// Calls visit(slot, expert) for the slots of this block's chunk, one per thread at a time; expert is -1 for threads
// without a slot and for ids out of range.
template <class Visit>
OPENMYTHOS_DEVICE void visit_chunk(const MoeGroupedArgs& p, Visit visit) {
    for (int i = 0; i < p.chunk; i += SORT_THREADS) {
        const int64_t slot = int64_t(block_index()) * p.chunk + i + thread_index();
        visit(int(slot), slot < p.moe.slots ? expert_of(p.moe, int(slot)) : -1);
    }
}

OPENMYTHOS_DEVICE void count_slots(const MoeGroupedArgs& p) {
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

// Exclusive prefix sum over the wave; `all` becomes the total.
template <int MASK = 1>
OPENMYTHOS_DEVICE int wave_prefix(int& all) {
    if constexpr (MASK < WAVE) {
        const int other = __builtin_bit_cast(int, from_lane_xor<MASK>(__builtin_bit_cast(float, all)));
        const int before = lane_index() & MASK ? other : 0;
        all += other;
        return before + wave_prefix<2 * MASK>(all);
    }
    return 0;
}

// Exclusive prefix sum over the block.
OPENMYTHOS_DEVICE int block_prefix(int x, int (&waves)[SORT_THREADS / WAVE]) {
    int before = wave_prefix(x);
    sync_block();
    if (lane_index() == 0) waves[wave_index()] = x;
    sync_block();
    for (int w = 0; w < wave_index(); w++) before += waves[w];
    return before;
}

OPENMYTHOS_DEVICE void place_slots(const MoeGroupedArgs& p) {
    alignas(16) __shared__ int experts[SORT_THREADS];
    __shared__ int waves[SORT_THREADS / WAVE];
    // For each expert: number of slots, first position, first tile, and the position of this block's next slot.
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
    int slots = 0, tile_counts = 0;
    const auto tiles_of = [&](int e) { return (counts[e] + MOE_BLOCK - 1) / MOE_BLOCK; };
    for (int e = thread * EXPERTS_PER_THREAD; e < (thread + 1) * EXPERTS_PER_THREAD; e++)
        slots += counts[e], tile_counts += tiles_of(e);
    slots = block_prefix(slots, waves), tile_counts = block_prefix(tile_counts, waves);
    for (int e = thread * EXPERTS_PER_THREAD; e < (thread + 1) * EXPERTS_PER_THREAD; e++) {
        firsts[e] = slots, tiles[e] = tile_counts, next[e] += slots;
        slots += counts[e], tile_counts += tiles_of(e);
    }
    sync_block();
    for (int t = block_index() * SORT_THREADS + thread; t < p.tile_count; t += p.chunks * SORT_THREADS) {
        // Binary search for the last expert whose first tile is at most t.
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
