#include "decompressed.h"

// Decompressed multi-head latent attention for many new tokens. The host computes keys and values of each head from the
// latent with torch's GEMM. This file has the attention, and a gather that prepares a paged or ragged latent for the
// GEMM.

namespace openmythos::gpu {

// Copies rows [latent | rope key] of every sequence to contiguous memory, zero from the length to a whole number of
// tiles, so that the attention reads whole tiles without stale values.
OPENMYTHOS_KERNEL(DECOMPRESSED_THREADS) openmythos_mla_decompressed_gather(MlaDecompressedArgs p) {
    const int64_t index = int64_t(block_index()) * DECOMPRESSED_WAVES + wave_index();
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

// `blocks`: resident blocks per multiprocessor.
#define OPENMYTHOS_MLA_DECOMPRESSED(name, T, dn, dr, dv, blocks)                     \
    OPENMYTHOS_KERNEL_RESIDENT(DECOMPRESSED_THREADS, blocks)                         \
    openmythos_mla_decompressed_##name##_##dn##_##dr##_##dv(MlaDecompressedArgs p) { \
        decompressed_attention<T, dn, dr, dv, blocks>(p);                            \
    }

OPENMYTHOS_MLA_DECOMPRESSED(bf16, bf16, 64, 32, 64, 2)
OPENMYTHOS_MLA_DECOMPRESSED(bf16, bf16, 96, 32, 96, 1)
OPENMYTHOS_MLA_DECOMPRESSED(bf16, bf16, 128, 64, 128, 1)
OPENMYTHOS_MLA_DECOMPRESSED(f16, f16, 64, 32, 64, 2)
OPENMYTHOS_MLA_DECOMPRESSED(f16, f16, 96, 32, 96, 1)
OPENMYTHOS_MLA_DECOMPRESSED(f16, f16, 128, 64, 128, 1)

}  // namespace openmythos::gpu
