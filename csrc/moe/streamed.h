#pragma once

#include "../core/gpu/reduce.h"
#include "../core/gpu/rows.h"

// What one block of each launch works on. The first slot that chose an expert leads: it serves all rows that chose the
// expert. Routing weights are folded into the activations, so that the second product sums over experts by itself.

namespace openmythos::gpu {

// The expert that a row chose as its j-th, -1 where the id is none.
OPENMYTHOS_DEVICE int expert_of(const MoeParams& p, int row, int j) {
    const int64_t at = row * p.ids_stride + j;
    const int64_t id =
        p.ids_bytes == 8 ? static_cast<const int64_t*>(p.ids)[at] : static_cast<const int32_t*>(p.ids)[at];
    return id >= 0 && id < p.experts ? int(id) : -1;
}
OPENMYTHOS_DEVICE int expert_of(const MoeParams& p, int slot) { return expert_of(p, slot / p.k, slot % p.k); }

// Where in `act` the activations of a shared expert begin for row 0.
OPENMYTHOS_DEVICE int64_t shared_offset(const MoeParams& p, int s) {
    return int64_t(p.slots) * p.width + p.shared[s].column;
}

OPENMYTHOS_DEVICE const char* element(const void* p, Type type, int64_t at) {
    return static_cast<const char*>(p) + at * (type == Type::float32 ? 4 : 2);
}

OPENMYTHOS_DEVICE float swiglu(float gate, float up) { return gate / (1.f + fast_exp2(gate * -1.44269504f)) * up; }

// ---- the first launch -------------------------------------------------------------------------------------------

// Hidden units from `first` on of one expert, routed or shared.
struct Hidden {
    const void *gate, *up;
    int64_t gate_stride, up_stride;
    int first, width;
};

// In shared memory: where in `act` each row's activations for the expert go, -1 if it did not choose it, and by what
// they are multiplied.
struct Takers {
    int ids[MOE_MAX_SLOTS];
    int64_t offset[MOE_MAX_ROWS];
    float factor[MOE_MAX_ROWS];
};

// False in every thread of a block whose slot does not lead.
OPENMYTHOS_DEVICE bool find_hidden(const MoeParams& p, Hidden& hidden, Takers& takers) {
    const int thread = thread_index();
    int block = block_index();
    if (block < p.shared_blocks) {
        int s = 0, begin = 0;
        while (block >= p.shared[s].end_block) begin = p.shared[s++].end_block;
        const MoeShared& expert = p.shared[s];
        hidden = {expert.gate, expert.up, expert.gate_stride, expert.up_stride, (block - begin) * p.hidden_per_block,
                  expert.width};
        if (thread < MOE_MAX_ROWS) {
            takers.offset[thread] = thread < p.rows ? shared_offset(p, s) + int64_t(thread) * p.shared_width : -1;
            takers.factor[thread] = 1.f;
        }
        sync_block();
        return true;
    }
    block -= p.shared_blocks;
    const int blocks = (p.width + p.hidden_per_block - 1) / p.hidden_per_block, slot = block / blocks;
    for (int s = thread; s < p.slots; s += block_threads()) takers.ids[s] = expert_of(p, s);
    sync_block();
    const int expert = uniform(takers.ids[slot]);
    bool earlier = expert < 0;
    for (int s = lane_index(); s < slot; s += WAVE) earlier |= takers.ids[s] == expert;
    if (wave_ballot(earlier)) return false;
    if (thread < MOE_MAX_ROWS) {
        int64_t offset = -1;
        float factor = 0.f;
        for (int j = 0; thread < p.rows && j < p.k; j++) {
            if (takers.ids[thread * p.k + j] != expert) continue;
            if (offset < 0) offset = int64_t(thread * p.k + j) * p.width;
            factor += p.weights[thread * p.weights_stride + j];
        }
        takers.offset[thread] = offset, takers.factor[thread] = factor;
    }
    sync_block();
    const char* gate = element(p.gate_up, p.x.type, expert * p.gate_up_strides[0]);
    hidden = {gate,
              element(gate, p.x.type, p.gate_up_strides[1]),
              p.gate_up_strides[2],
              p.gate_up_strides[2],
              (block - slot * blocks) * p.hidden_per_block,
              p.width};
    return true;
}

// ---- the second launch ------------------------------------------------------------------------------------------

// In shared memory: the distinct experts in the order of the slots that lead, and for each row the slot whose
// activations are its, or -1.
template <int ROWS>
struct Chosen {
    int ids[MOE_MAX_SLOTS], expert[MOE_MAX_SLOTS];
    int16_t slot[MOE_MAX_SLOTS][ROWS];
    uint8_t leads[MOE_MAX_SLOTS];
    int count;
};

template <int ROWS>
OPENMYTHOS_DEVICE void find_chosen(const MoeParams& p, Chosen<ROWS>& chosen) {
    const int thread = thread_index(), threads = block_threads();
    if (thread == 0) chosen.count = 0;
    for (int s = thread; s < p.slots; s += threads) chosen.ids[s] = expert_of(p, s);
    sync_block();
    for (int s = thread; s < p.slots; s += threads) {
        bool leads = chosen.ids[s] >= 0;
        for (int t = 0; t < s; t++) leads = leads && chosen.ids[t] != chosen.ids[s];
        chosen.leads[s] = leads;
    }
    sync_block();
    for (int s = thread; s < p.slots; s += threads) {
        int rank = 0;
        for (int t = 0; t < s; t++) rank += chosen.leads[t];
        if (chosen.leads[s]) chosen.expert[rank] = chosen.ids[s];
        if (s == p.slots - 1) chosen.count = rank + chosen.leads[s];
    }
    sync_block();
    for (int i = thread; i < chosen.count * ROWS; i += threads) {
        const int row = i % ROWS;
        int slot = -1;
        for (int j = p.k - 1; row < p.rows && j >= 0; j--)
            if (chosen.ids[row * p.k + j] == chosen.expert[i / ROWS]) slot = row * p.k + j;
        chosen.slot[i / ROWS][row] = int16_t(slot);
    }
    sync_block();
}

// One expert, routed or shared: the chosen ones come first.
struct Down {
    const void* weights;
    int64_t stride;
    int width;
};

template <int ROWS>
OPENMYTHOS_DEVICE Down down_of(const MoeParams& p, const Chosen<ROWS>& chosen, int unit) {
    if (unit < chosen.count)
        return {element(p.down, p.x.type, uniform(chosen.expert[unit]) * p.down_strides[0]), p.down_strides[1],
                p.width};
    const MoeShared& expert = p.shared[unit - chosen.count];
    return {expert.down, expert.down_stride, expert.width};
}

// Where in `act` a row's activations for this expert are, -1 if it did not choose it.
template <int ROWS>
OPENMYTHOS_DEVICE int64_t act_offset(const MoeParams& p, const Chosen<ROWS>& chosen, int unit, int row) {
    if (unit >= chosen.count)
        return row < p.rows ? shared_offset(p, unit - chosen.count) + int64_t(row) * p.shared_width : -1;
    const int slot = chosen.slot[unit][row];
    return slot < 0 ? -1 : int64_t(slot) * p.width;
}

// A row with an id that is no expert is NaN: looking at it on the host would wait for the device.
template <int ROWS>
OPENMYTHOS_DEVICE float or_nan(const MoeParams& p, const Chosen<ROWS>& chosen, int row, float value) {
    for (int j = 0; j < p.k; j++)
        if (chosen.ids[row * p.k + j] < 0) value = __builtin_nanf("");
    return value;
}

}  // namespace openmythos::gpu
