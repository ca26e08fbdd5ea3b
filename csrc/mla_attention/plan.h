#pragma once

#include "../runtime/plan.h"
#include "args.h"

namespace openmythos::runtime {

// (dc, dr) of the absorbed kernels, and their limits.
constexpr int MLA_WIDTHS[][2] = {{256, 32}, {384, 32}, {512, 64}, {1024, 64}};
constexpr int64_t MLA_MAX_HEAD = 256, MLA_MAX_NEW = 16, MLA_MAX_HEADS = 65535;
// (dn, dr, dv) of the decompressed kernels, and the multiple of keys that they read.
constexpr int MLA_HEADS[][3] = {{64, 32, 64}, {96, 32, 96}, {128, 64, 128}};
constexpr int64_t MLA_WHOLE_KEYS = 64;

// Depends on shapes and the device only, so that a sequence's result does not depend on other lengths in the batch.
struct MlaAbsorbedPlan {
    MlaArgs args;
    Launch fold, splits, combine;
    int64_t scratch_bytes;  // aligned to 256

    void set_scratch(void* scratch);
};
MlaAbsorbedPlan absorbed_plan(MlaArgs args, int multiprocessors);

// In order: the arguments, except for pointers that the caller allocates; the number of heads whose keys and values are
// in memory at a time; the gather of a ragged or paged latent; the attention.
MlaDecompressedArgs decompressed_args(const MlaArgs& args);
int64_t heads_at_a_time(const MlaDecompressedArgs& args);
Launch gather_plan(const MlaDecompressedArgs& args);
Launch decompressed_plan(const MlaDecompressedArgs& args, Type type, const gpu::SharedTiles& tiles);

}  // namespace openmythos::runtime
