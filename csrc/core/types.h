#pragma once

#include <stdint.h>

// Plain data that host code, CPU kernels and GPU kernels share. CPU kernels compile with different -m flags, so no
// function here may be emitted out of line.

namespace openmythos {

enum class Type : int32_t { float32, bfloat16, float16 };
constexpr int TYPES = 3;

// Bytes of one element.
__attribute__((always_inline)) static inline constexpr int64_t size_of(Type type) {
    return type == Type::float32 ? 4 : 2;
}

// Rows of contiguous columns; `stride` counts elements from one row to the next.
struct Matrix {
    void* data;
    int64_t stride;
    Type type;
    int32_t unused;
};

// The innermost dimension is contiguous.
struct Tensor4 {
    void* data;
    int64_t strides[3];
};

}  // namespace openmythos
