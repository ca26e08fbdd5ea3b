#pragma once

// Storage types of elements, and the 16-byte vector of one load or store.

#define OPENMYTHOS_DEVICE __device__ __attribute__((always_inline)) inline

namespace openmythos::gpu {

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

struct alignas(16) Words {
    uint32_t w[4];
};

OPENMYTHOS_DEVICE float to_float(float x) { return x; }
OPENMYTHOS_DEVICE float to_float(bf16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }

// Rounds to nearest, ties to even.
template <class T>
OPENMYTHOS_DEVICE T from_float(float x);
template <>
OPENMYTHOS_DEVICE float from_float<float>(float x) {
    return x;
}

OPENMYTHOS_DEVICE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

OPENMYTHOS_DEVICE void store_words(void* p, Words x) { *static_cast<Words*>(p) = x; }

}  // namespace openmythos::gpu
