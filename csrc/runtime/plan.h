#pragma once

#include "../core/types.h"
#include "runtime.h"

// What the plans of all ops share. A plan is a value with kernels, grids and scratch sizes for an op's arguments; pure
// functions, declared in csrc/<op>/plan.h, compute it.

namespace openmythos::runtime {

constexpr int VEC = 8;  // columns per thread and load
// HIP counts the threads of a launch in 32 bits.
constexpr int64_t MAX_THREADS = int64_t(1) << 32;
// Limits of the row kernels: a block holds a row in registers, and rows are counted in 32 bits.
constexpr int64_t MAX_WIDTH = 16384, MAX_ROWS = int64_t(1) << 31;

// 16-byte loads require it of every row.
inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
inline bool is_aligned(const Matrix& x) { return is_aligned(x.data) && x.stride * size_of(x.type) % 16 == 0; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One launch and the arguments that its kernel takes by value.
template <class Args>
struct Planned {
    Args args;
    Launch launch;
};

}  // namespace openmythos::runtime
