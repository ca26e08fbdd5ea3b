#include "../core/gpu/reduce.h"
#include "../core/gpu/rows.h"
#include "args.h"

// Chooses the k largest of logits + bias, ties to the lower id and NaN as -inf, weights them by the softmax of their
// raw logits, and counts the rows of each expert. One wave per row with its scores in registers, so that k choices take
// k reductions. Up to 16 rows are one block; more blocks add their counts atomically, which is exact in any order.

namespace openmythos::gpu {

constexpr int CHOSEN = -2147483647 - 1;  // below the key of every float

// An integer with the ordering of the float.
OPENMYTHOS_DEVICE int order_key(float score) {
    if (score != score) score = -__builtin_inff();
    int bits = score == 0.f ? 0 : __builtin_bit_cast(int, score);
    return bits ^ (bits >> 31 & 0x7fffffff);
}

template <int MASK = WAVE / 2>
OPENMYTHOS_DEVICE void wave_argmax(int& key, int& expert) {
    if constexpr (MASK > 0) {
        int other_key = __builtin_bit_cast(int, from_lane_xor<MASK>(__builtin_bit_cast(float, key)));
        int other = __builtin_bit_cast(int, from_lane_xor<MASK>(__builtin_bit_cast(float, expert)));
        bool better = other_key > key || (other_key == key && other < expert);
        key = better ? other_key : key, expert = better ? other : expert;
        wave_argmax<MASK / 2>(key, expert);
    }
}

// e^x for x <= 0; NaN stays NaN.
OPENMYTHOS_DEVICE float exp_nonpositive(float x) {
    x = x < -126.f ? -126.f : x;
    float hi = x * 1.44269504f, lo = fma(x, 1.44269504f, -hi) + x * 1.925963033e-8f, y = fast_exp2(hi);
    return fma(y, lo * 0.693147181f, y);
}

template <int PER_LANE>
OPENMYTHOS_DEVICE void moe_route(const MoeRouteArgs& p) {
    __shared__ int chosen[ROUTE_MAX_CHOICES];
    const int first = block_index() * p.rows_per_block, lane = lane_index();
    const int rows = p.rows - first < p.rows_per_block ? p.rows - first : p.rows_per_block;
    const bool active = wave_index() < rows;
    const int row = active ? first + wave_index() : 0;
    int* const mine = chosen + wave_index() * p.k;
    const AnyRow logits = AnyRow::of(p.logits, row);
    if (active) {
        int keys[PER_LANE];
#pragma unroll
        for (int j = 0; j < PER_LANE; j++) {
            int e = j * WAVE + lane;
            keys[j] = CHOSEN;
            if (e < p.experts) keys[j] = order_key(load_any(logits.p, logits.type, e) + (p.bias ? p.bias[e] : 0.f));
        }
        for (int i = 0; i < p.k; i++) {
            int best = CHOSEN, at = 0;
#pragma unroll
            for (int j = 0; j < PER_LANE; j++)
                if (keys[j] > best) best = keys[j], at = j;
            int expert = at * WAVE + lane;
            wave_argmax(best, expert);
            if (lane == 0) mine[i] = expert;
#pragma unroll
            for (int j = 0; j < PER_LANE; j++)
                if (j * WAVE + lane == expert) keys[j] = CHOSEN;
        }
    }
    sync_block();
    if (active) {
        float max = -__builtin_inff(), sum = 0.f;
        for (int i = lane; i < p.k; i += WAVE) max = __builtin_fmaxf(max, load_any(logits.p, logits.type, mine[i]));
        max = wave_max(max);
        for (int i = lane; i < p.k; i += WAVE) sum += exp_nonpositive(load_any(logits.p, logits.type, mine[i]) - max);
        sum = wave_sum(sum);
        for (int i = lane; i < p.k; i += WAVE) {
            p.ids[row * p.ids_stride + i] = mine[i];
            p.weights[row * p.weights_stride + i] =
                exp_nonpositive(load_any(logits.p, logits.type, mine[i]) - max) / sum;
        }
    }
    for (int e = thread_index(); e < p.experts; e += block_threads()) {
        int count = 0;
        for (int s = 0; s < rows * p.k; s++) count += chosen[s] == e;
        if (!p.add_counts)
            p.counts[e] = count;
        else if (count)
            atomic_add(p.counts + e, count);
    }
}

#define OPENMYTHOS_MOE_ROUTE(experts)                                                               \
    OPENMYTHOS_KERNEL(ROUTE_MAX_ROWS* WAVE) openmythos_moe_route_experts##experts(MoeRouteArgs p) { \
        moe_route<experts / WAVE>(p);                                                               \
    }

OPENMYTHOS_MOE_ROUTE(64)
OPENMYTHOS_MOE_ROUTE(256)
OPENMYTHOS_MOE_ROUTE(1024)

}  // namespace openmythos::gpu
