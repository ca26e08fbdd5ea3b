#pragma once

#include "../compat.h"
#include "params.h"

// Rows of any storage type as float32, eight columns a thread.

namespace openmythos::gpu {

constexpr int VEC = 8;

template <class T>
OPENMYTHOS_DEVICE void unpack(const Words* raw, float (&x)[VEC]) {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int j = 0; j < VEC; j++) x[j] = __builtin_bit_cast(float, raw[j / 4].w[j % 4]);
    } else {
#pragma unroll
        for (int j = 0; j < VEC; j += 2) {
            x[j] = to_float(T{uint16_t(raw[0].w[j / 2])});
            x[j + 1] = to_float(T{uint16_t(raw[0].w[j / 2] >> 16)});
        }
    }
}

template <class T>
OPENMYTHOS_DEVICE void pack(const float (&x)[VEC], Words* raw) {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int j = 0; j < VEC; j++) raw[j / 4].w[j % 4] = __builtin_bit_cast(uint32_t, x[j]);
    } else {
#pragma unroll
        for (int j = 0; j < VEC; j += 2)
            raw[0].w[j / 2] = uint32_t(from_float<T>(x[j]).bits) | uint32_t(from_float<T>(x[j + 1]).bits) << 16;
    }
}

// Eight aligned elements that this block reads once.
template <class T>
OPENMYTHOS_DEVICE void load_vector(const T* p, float (&x)[VEC]) {
    Words raw[sizeof(T) / 2];
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / 2); i++) raw[i] = load_once(reinterpret_cast<const char*>(p) + 16 * i);
    unpack<T>(raw, x);
}

// Eight aligned floats that other blocks read too.
OPENMYTHOS_DEVICE void load_parameters(const float* p, float (&x)[VEC]) {
    Words raw[2] = {load_shared_by_blocks(p), load_shared_by_blocks(p + 4)};
    unpack<float>(raw, x);
}

template <class T>
OPENMYTHOS_DEVICE void store_vector(T* p, const float (&x)[VEC]) {
    Words raw[sizeof(T) / 2];
    pack<T>(x, raw);
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / 2); i++) store_words(reinterpret_cast<char*>(p) + 16 * i, raw[i]);
}

// A row whose type is known when compiling: every row begins at 16 bytes and d is a multiple of VEC.
template <class T>
struct FastRow {
    T* p;
    OPENMYTHOS_DEVICE static FastRow of(const Rows& x, int64_t n) { return {static_cast<T*>(x.data) + n * x.stride}; }
    OPENMYTHOS_DEVICE void load(int i, int, float (&x)[VEC]) const { load_vector(p + i, x); }
    OPENMYTHOS_DEVICE void store(int i, int, const float (&x)[VEC]) const { store_vector(p + i, x); }
};

struct AnyRow;
template <class Row, class T>
struct AsFast {
    using type = FastRow<T>;
};
template <class T>
struct AsFast<AnyRow, T> {
    using type = AnyRow;
};
// Rows of T, read with vectors where Row is.
template <class Row, class T>
using Either = typename AsFast<Row, T>::type;

OPENMYTHOS_DEVICE float load_any(const void* p, Type type, int64_t i) {
    if (type == Type::float32) return static_cast<const float*>(p)[i];
    uint16_t bits = static_cast<const uint16_t*>(p)[i];
    return type == Type::bfloat16 ? to_float(bf16{bits}) : to_float(f16{bits});
}

OPENMYTHOS_DEVICE void store_any(void* p, Type type, int64_t i, float x) {
    if (type == Type::float32)
        static_cast<float*>(p)[i] = x;
    else
        static_cast<uint16_t*>(p)[i] = type == Type::bfloat16 ? from_float<bf16>(x).bits : from_float<f16>(x).bits;
}

OPENMYTHOS_DEVICE float keep(bool wanted, float x) { return wanted ? x : 0.f; }

// A row of any type, alignment and width; past its end it reads its first element again, which costs no branch.
// `left` columns from i on exist.
struct AnyRow {
    void* p;
    Type type;
    OPENMYTHOS_DEVICE static AnyRow of(const Rows& x, int64_t n) {
        return {static_cast<char*>(x.data) + n * x.stride * (x.type == Type::float32 ? 4 : 2), x.type};
    }
    OPENMYTHOS_DEVICE void load(int i, int left, float (&x)[VEC]) const {
        left = forgotten(left);
#pragma unroll
        for (int j = 0; j < VEC; j++) x[j] = keep(j < left, load_any(p, type, i + (j < left ? j : 0)));
    }
    OPENMYTHOS_DEVICE void store(int i, int left, const float (&x)[VEC]) const {
        left = forgotten(left);
#pragma unroll
        for (int j = 0; j < VEC; j++)
            if (j < left) store_any(p, type, i + j, x[j]);
    }
};

// Parameters in float32, for either kind of row.
template <class Row>
OPENMYTHOS_DEVICE void load_floats(const float* p, int i, int left, float (&x)[VEC]) {
    if constexpr (__is_same(Row, AnyRow)) {
        left = forgotten(left);
#pragma unroll
        for (int j = 0; j < VEC; j++) x[j] = keep(j < left, p[i + (j < left ? j : 0)]);
    } else {
        load_parameters(p + i, x);
    }
}

// The sum over the block of each of COUNT values, in every thread. `scratch` holds COUNT floats for each wave; the
// barrier before its next use is the caller's.
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
