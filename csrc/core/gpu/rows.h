#pragma once

#include "../types.h"
#include "vendor.h"

// Rows of any storage type, loaded and stored as float32, eight columns per thread.

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

// Eight elements at a 16-byte aligned address that this block reads once.
template <class T>
OPENMYTHOS_DEVICE void load_vector(const T* p, float (&x)[VEC]) {
    Words raw[sizeof(T) / 2];
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / 2); i++) raw[i] = load_once(reinterpret_cast<const char*>(p) + 16 * i);
    unpack<T>(raw, x);
}

// Eight floats of a parameter that every block reads.
OPENMYTHOS_DEVICE void load_parameters(const float* p, float (&x)[VEC]) {
    Words raw[2] = {load_cached(p), load_cached(p + 4)};
    unpack<float>(raw, x);
}

template <class T>
OPENMYTHOS_DEVICE void store_vector(T* p, const float (&x)[VEC]) {
    Words raw[sizeof(T) / 2];
    pack<T>(x, raw);
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / 2); i++) store_words(reinterpret_cast<char*>(p) + 16 * i, raw[i]);
}

// A row of a type known at compile time; rows are 16-byte aligned and d is a multiple of VEC.
template <class T>
struct FastRow {
    T* p;
    OPENMYTHOS_DEVICE static FastRow of(const Matrix& x, int64_t n) { return {static_cast<T*>(x.data) + n * x.stride}; }
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
// Rows of T, vectorised where Row is.
template <class Row, class T>
using RowOf = typename AsFast<Row, T>::type;

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

OPENMYTHOS_DEVICE float or_zero(bool valid, float x) { return valid ? x : 0.f; }

// A row of any type, alignment and width. `left` is the number of columns from i to the end. Elements past it load
// column i again and become 0, which avoids a branch.
struct AnyRow {
    void* p;
    Type type;
    OPENMYTHOS_DEVICE static AnyRow of(const Matrix& x, int64_t n) {
        return {static_cast<char*>(x.data) + n * x.stride * (x.type == Type::float32 ? 4 : 2), x.type};
    }
    OPENMYTHOS_DEVICE void load(int i, int left, float (&x)[VEC]) const {
        left = opaque(left);
#pragma unroll
        for (int j = 0; j < VEC; j++) x[j] = or_zero(j < left, load_any(p, type, i + (j < left ? j : 0)));
    }
    OPENMYTHOS_DEVICE void store(int i, int left, const float (&x)[VEC]) const {
        left = opaque(left);
#pragma unroll
        for (int j = 0; j < VEC; j++)
            if (j < left) store_any(p, type, i + j, x[j]);
    }
};

// Eight floats of a parameter, for either kind of row.
template <class Row>
OPENMYTHOS_DEVICE void load_floats(const float* p, int i, int left, float (&x)[VEC]) {
    if constexpr (__is_same(Row, AnyRow)) {
        left = opaque(left);
#pragma unroll
        for (int j = 0; j < VEC; j++) x[j] = or_zero(j < left, p[i + (j < left ? j : 0)]);
    } else {
        load_parameters(p + i, x);
    }
}

}  // namespace openmythos::gpu
