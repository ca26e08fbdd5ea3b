#pragma once

// Facts about each GPU vendor that host and device code share; csrc/runtime/vendor.h has the host's own. To add a
// vendor: a struct here, a folder with intrinsics.h and mma.h beside this file, a branch in vendor.h, and an entry in
// csrc/runtime/vendor.cpp.

namespace openmythos::gpu {

// The tiles that a block streams through shared memory (shared_tiles.h).
struct SharedTiles {
    int columns;    // 16-bit elements of a row in one tile
    int stages;     // of the pipeline: one is multiplied while the others load
    int alignment;  // of the first tile, in bytes; the launch itself gives 16

    // Dynamic shared memory in bytes of `count` elements, with the slack that aligning them takes.
    constexpr int bytes(int count) const { return 2 * count + (alignment > 16 ? alignment : 0); }
    // The same for all stages of tiles of `rows` rows.
    constexpr int pipeline_bytes(int rows) const { return bytes(rows * stages * columns); }
};

struct Cuda {
    static constexpr const char* NAME = "cuda";
    static constexpr int WAVE = 32;
    // The 128-byte swizzle of wgmma counts rows from multiples of 1024 bytes.
    static constexpr SharedTiles TILES = {64, 3, 1024};
    // Columns of both operands that one call of mma_vectors contracts.
    static constexpr int VECTOR_K = 32;
    // Rows of a 16 x 16 fragment of which a lane holds elements.
    static constexpr int FRAGMENT_ROWS = 2;
    // Elements of shared memory that transpose() needs for each wave.
    static constexpr int TRANSPOSE_SCRATCH = 1;
    // Adjacent columns in consecutive accumulators of a lane.
    static constexpr int ADJACENT_COLUMNS = 2;
    // Whether both halves of a wave hold the same fragment, which doubles its registers.
    static constexpr bool DUPLICATES_FRAGMENTS = false;
    // Whether skipping the rescaling of an attention output when no maximum changed pays for the branch.
    static constexpr bool SKIPS_RESCALING = true;
};

struct Hip {
    static constexpr const char* NAME = "rocm";
    static constexpr int WAVE = 32;
    // Registers hold a third stage: loads go through them.
    static constexpr SharedTiles TILES = {32, 2, 16};
    static constexpr int VECTOR_K = 16;
    static constexpr int FRAGMENT_ROWS = 1;
    static constexpr int TRANSPOSE_SCRATCH = 256;
    static constexpr int ADJACENT_COLUMNS = 1;
    static constexpr bool DUPLICATES_FRAGMENTS = true;
    static constexpr bool SKIPS_RESCALING = false;  // the branch costs more registers than a wave has
};

}  // namespace openmythos::gpu
