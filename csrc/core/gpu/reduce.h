#pragma once

#include "vendor.h"

// Sums and maxima over a wave and over a block.

namespace openmythos::gpu {

// wave_sum<LANES / 2> sums over aligned groups of LANES lanes only.
template <int MASK = WAVE / 2>
OPENMYTHOS_DEVICE float wave_sum(float x) {
    if constexpr (MASK > 0) {
        x += from_lane_xor<MASK>(x);
        return wave_sum<MASK / 2>(x);
    }
    return x;
}

template <int MASK = WAVE / 2>
OPENMYTHOS_DEVICE float wave_max(float x) {
    if constexpr (MASK > 0) {
        x = __builtin_fmaxf(x, from_lane_xor<MASK>(x));
        return wave_max<MASK / 2>(x);
    }
    return x;
}

// Sums COUNT values over the wave at once. Each exchange halves the number of values until one is left, so this takes
// COUNT - 1 + log2(WAVE / COUNT) exchanges instead of COUNT log2(WAVE). Lane l gets the sum of
// values[l / (WAVE / COUNT)].
template <int COUNT, int MASK = WAVE / 2>
OPENMYTHOS_DEVICE float wave_sums(float (&values)[COUNT]) {
    static_assert(COUNT >= 1 && COUNT <= WAVE && (COUNT & (COUNT - 1)) == 0);
    if constexpr (COUNT == 1) {
        return wave_sum<MASK>(values[0]);
    } else {
        const bool upper = lane_index() & MASK;
        float half[COUNT / 2];
#pragma unroll
        for (int i = 0; i < COUNT / 2; i++) {
            float sent = upper ? values[i] : values[i + COUNT / 2], kept = upper ? values[i + COUNT / 2] : values[i];
            half[i] = kept + from_lane_xor<MASK>(sent);
        }
        return wave_sums<COUNT / 2, MASK / 2>(half);
    }
}

// Sums each of COUNT values over the block; every thread gets the sums. `scratch` holds COUNT floats per wave; put a
// barrier before its next use.
template <int COUNT>
OPENMYTHOS_DEVICE void block_sums(float (&values)[COUNT], float* scratch) {
    const int waves = (block_threads() + WAVE - 1) / WAVE;
    float sum = wave_sums(values);
    if (lane_index() % (WAVE / COUNT) == 0) scratch[wave_index() * COUNT + lane_index() / (WAVE / COUNT)] = sum;
    sync_block();
#pragma unroll
    for (int i = 0; i < COUNT; i++) values[i] = 0.f;
    for (int w = 0; w < waves; w++) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) values[i] += scratch[w * COUNT + i];
    }
}

}  // namespace openmythos::gpu
