#pragma once

#include "../gpu/params.h"
#include "runtime.h"

// Which kernel with which grid serves an op's arguments. One file an op. A plan points at the params it was made from.

namespace openmythos::runtime {

constexpr int VEC = 8;  // columns that a thread handles at a time

// Bytes of one element, and whether a row pointer and stride fall on 16 bytes.
inline int64_t size_of(gpu::Type type) { return type == gpu::Type::float32 ? 4 : 2; }
inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
inline bool is_aligned(const gpu::Rows& x) { return is_aligned(x.data) && x.stride * size_of(x.type) % 16 == 0; }

// The widest row that a kernel holds in registers.
constexpr int64_t MAX_WIDTH = 16384;
constexpr int64_t MAX_RANK = 256;
constexpr int64_t MAX_LOOP_DIM = 8192;

Launch plan(gpu::RmsNormParams& params);
Launch plan(gpu::LoopStepParams& params, int multiprocessors);

}  // namespace openmythos::runtime
