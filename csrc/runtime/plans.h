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
// A launch's threads count in 32 bits on AMD.
constexpr int64_t MAX_THREADS = int64_t(1) << 32;
constexpr int64_t MAX_RANK = 256;
constexpr int64_t MAX_LOOP_DIM = 8192;
// Of the columns of x and of the hidden units of an expert, so that blocks and columns count in 32 bits.
constexpr int64_t MAX_MOE_WIDTH = int64_t(1) << 22;

// What the attention kernels have instances for, (dc, dr), and their other limits.
constexpr int MLA_WIDTHS[][2] = {{256, 32}, {384, 32}, {512, 64}, {1024, 64}};
constexpr int64_t MLA_MAX_HEAD = 256, MLA_MAX_NEW = 16;
// (dn, dr, dv) of the decompressed form, and of how many keys its tiles have to be whole.
constexpr int MLA_HEADS[][3] = {{64, 32, 64}, {96, 32, 96}, {128, 64, 128}};
constexpr int64_t MLA_WHOLE_KEYS = 64;

struct MlaPlan {
    Launch fold, shares, combine;
};

Launch plan(gpu::RmsNormParams& params);
Launch plan(gpu::LoopStepParams& params, int multiprocessors);
Launch plan(gpu::MoeRouteParams& params);

// The second launch reads what the first one wrote. Where there is nothing to choose from, `up` has no blocks.
struct MoePlan {
    Launch up, down;
};
MoePlan plan(gpu::MoeParams& params);
// Every row of x and of the weights begins at 16 bytes, and every size is a multiple of VEC.
bool is_aligned(const gpu::MoeParams& params);

// For more rows than that. Each launch reads what those before it wrote; one without blocks is none.
struct MoeGroupedPlan {
    Launch launches[5];
};
// Decides how slots are dealt to blocks; the most blocks of a launch.
int64_t deal(gpu::MoeGroupedParams& params);
int64_t scratch_bytes(const gpu::MoeGroupedParams& params);
MoeGroupedPlan plan(gpu::MoeGroupedParams& params, void* scratch, const gpu::SharedTiles& tiles);

// Decides about the shares of the keys, and says how many bytes of scratch, aligned to 256, plan() then cuts up.
int64_t scratch_bytes(gpu::MlaParams& params, gpu::Type type, int multiprocessors);
MlaPlan plan(gpu::MlaParams& params, gpu::Type type, void* scratch);

// Of the decompressed form: what follows from the arguments alone; how many heads' keys and values are in memory at a
// time; what makes a ragged or paged latent one tensor; the attention.
gpu::MlaPrefillParams prefill_params(const gpu::MlaParams& params);
int64_t heads_at_a_time(const gpu::MlaPrefillParams& params);
Launch gather_plan(const gpu::MlaPrefillParams& params);
Launch plan(const gpu::MlaPrefillParams& params, gpu::Type type, const gpu::SharedTiles& tiles);

}  // namespace openmythos::runtime
