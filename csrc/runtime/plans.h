#pragma once

#include "../gpu/params.h"
#include "runtime.h"

// Chooses kernels and grids for an op's arguments. A plan keeps pointers to the params, which must outlive it.

namespace openmythos::runtime {

constexpr int VEC = 8;  // columns per thread and load

// Bytes of an element.
inline int64_t size_of(Type type) { return type == Type::float32 ? 4 : 2; }
// All rows are 16-byte aligned.
inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
inline bool is_aligned(const gpu::Rows& x) { return is_aligned(x.data) && x.stride * size_of(x.type) % 16 == 0; }

// Widest row that a block holds in registers.
constexpr int64_t MAX_WIDTH = 16384;
// HIP counts the threads of a launch in 32 bits.
constexpr int64_t MAX_THREADS = int64_t(1) << 32;
constexpr int64_t MAX_RANK = 256;
constexpr int64_t MAX_LOOP_DIM = 8192;
// Of the columns of x and of an expert's hidden units, so that 32 bits count blocks and columns.
constexpr int64_t MAX_MOE_WIDTH = int64_t(1) << 22;

// (dc, dr) of the absorbed kernels, and their limits.
constexpr int MLA_WIDTHS[][2] = {{256, 32}, {384, 32}, {512, 64}, {1024, 64}};
constexpr int64_t MLA_MAX_HEAD = 256, MLA_MAX_NEW = 16;
// (dn, dr, dv) of the decompressed kernels, and the multiple of keys that they read.
constexpr int MLA_HEADS[][3] = {{64, 32, 64}, {96, 32, 96}, {128, 64, 128}};
constexpr int64_t MLA_WHOLE_KEYS = 64;

struct MlaPlan {
    Launch fold, splits, combine;
};

Launch plan(RmsNormArgs& params);
Launch plan(LoopStepArgs& params, int multiprocessors);
Launch plan(MoeRouteArgs& params);

// `down` reads what `up` wrote. Without experts `up` has no blocks and must not be launched.
struct MoePlan {
    Launch up, down;
};
MoePlan plan(MoeExpertsArgs& params);
// All rows of x and of the weights are 16-byte aligned, and all sizes are multiples of VEC.
bool is_aligned(const MoeExpertsArgs& params);

// For more rows. Each launch reads what the ones before it wrote; skip those without blocks.
struct MoeGroupedPlan {
    Launch launches[5];
};
// Sets how slots are divided among blocks, and returns the largest grid of any launch.
int64_t deal(MoeGroupedArgs& params);
int64_t scratch_bytes(const MoeGroupedArgs& params);
MoeGroupedPlan plan(MoeGroupedArgs& params, void* scratch, const gpu::SharedTiles& tiles);

// Sets the number of splits, and returns the bytes of scratch that plan() needs, aligned to 256.
int64_t scratch_bytes(MlaArgs& params, Type type, int multiprocessors);
MlaPlan plan(MlaArgs& params, Type type, void* scratch);

// The decompressed form: params from the arguments alone; the number of heads whose keys and values are in memory at a
// time; the gather of a ragged or paged latent; the attention.
MlaDecompressedArgs decompressed_params(const MlaArgs& params);
int64_t heads_at_a_time(const MlaDecompressedArgs& params);
Launch gather_plan(const MlaDecompressedArgs& params);
Launch plan(const MlaDecompressedArgs& params, Type type, const gpu::SharedTiles& tiles);

}  // namespace openmythos::runtime
