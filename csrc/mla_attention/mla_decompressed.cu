#include "decompressed.h"

// Decompressed multi-head latent attention for many new tokens. Keys and values of every head are matrix products of
// the latent that the caller asks torch for; here are the attention, and what prepares a latent for those products.

namespace openmythos::gpu {

// Rows [latent | rope key] of every sequence in a row, from pages or not, and zero from its length to a whole number of
// tiles: so the attention reads whole tiles and meets no number that somebody left behind.
OPENMYTHOS_KERNEL(PREFILL_THREADS) openmythos_mla_decompressed_gather(MlaPrefillParams p) {
    const int64_t index = int64_t(block_index()) * PREFILL_WAVES + wave_index();
    if (index >= int64_t(p.b) * p.padded) return;
    const int batch = int(index / p.padded), key = int(index % p.padded);
    uint16_t* const to = static_cast<uint16_t*>(p.gathered) + index * (p.dc + p.dr);
    const bool inside = key < length_of(p, batch);
    KeyPlace place = {};
    if (inside) place = place_of(p, batch, key);
    const uint16_t *latent = latent_at<uint16_t>(p, place), *k_rope = k_rope_at<uint16_t>(p, place);
    for (int c = lane_index() * CHUNK; c < p.dc + p.dr; c += WAVE * CHUNK) {
        Words x = {};
        if (inside) x = load_once(c < p.dc ? latent + c : k_rope + (c - p.dc));
        store_words(to + c, x);
    }
}

// The last number says how many blocks share a multiprocessor.
#define OPENMYTHOS_MLA_PREFILL(name, T, dn, dr, dv, blocks)                       \
    OPENMYTHOS_KERNEL_RESIDENT(PREFILL_THREADS, blocks)                           \
    openmythos_mla_decompressed_##name##_##dn##_##dr##_##dv(MlaPrefillParams p) { \
        mla_prefill<T, dn, dr, dv, blocks>(p);                                    \
    }

OPENMYTHOS_MLA_PREFILL(bf16, bf16, 64, 32, 64, 2)
OPENMYTHOS_MLA_PREFILL(bf16, bf16, 96, 32, 96, 1)
OPENMYTHOS_MLA_PREFILL(bf16, bf16, 128, 64, 128, 1)
OPENMYTHOS_MLA_PREFILL(f16, f16, 64, 32, 64, 2)
OPENMYTHOS_MLA_PREFILL(f16, f16, 96, 32, 96, 1)
OPENMYTHOS_MLA_PREFILL(f16, f16, 128, 64, 128, 1)

}  // namespace openmythos::gpu
