#pragma once

#include "../core/gpu/rows.h"
#include "args.h"

// Reads the latent cache, contiguous or paged, of sequences of different lengths.

namespace openmythos::gpu {

constexpr float MINUS_INFINITY = -__builtin_inff();

// Where a key is: its sequence or page, and its row there.
struct KeyPlace {
    int64_t sequence;
    int row;
};

OPENMYTHOS_DEVICE int load_index(const void* p, bool wide, int64_t i) {
    return wide ? int(static_cast<const int64_t*>(p)[i]) : static_cast<const int32_t*>(p)[i];
}

template <class Params>
OPENMYTHOS_DEVICE int length_of(const Params& p, int batch) {
    if (!p.seq_lens) return p.total;
    const int length = load_index(p.seq_lens, p.wide_lens, batch);
    return length < 0 ? 0 : length < p.total ? length : p.total;
}

// `key` must be below the sequence's length: later pages may not exist.
template <class Params>
OPENMYTHOS_DEVICE KeyPlace place_of(const Params& p, int batch, int key) {
    if (!p.page) return {batch, key};
    uint32_t page = uint32_t(key) / uint32_t(p.page);
    return {load_index(p.block_table, p.wide_table, batch * p.table_b + page), key - int(page) * p.page};
}

template <class T, class Params>
OPENMYTHOS_DEVICE const T* latent_at(const Params& p, KeyPlace key) {
    return static_cast<const T*>(p.latent) + key.sequence * p.latent_b + key.row * p.latent_s;
}
template <class T, class Params>
OPENMYTHOS_DEVICE const T* k_rope_at(const Params& p, KeyPlace key) {
    return static_cast<const T*>(p.k_rope) + key.sequence * p.k_rope_b + key.row * p.k_rope_s;
}

}  // namespace openmythos::gpu
