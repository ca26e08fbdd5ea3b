#pragma once

// Facts about each GPU vendor that host and device code share; csrc/runtime/vendor.h has those for the host only. To
// add a vendor: a struct here, a folder with intrinsics.h and mma.h beside this file, a branch in vendor.h, and an
// entry in csrc/runtime/vendor.cpp.

namespace openmythos::gpu {

// The tiles that a block streams through shared memory (shared_tiles.h).
struct SharedTiles {
    int columns;    // 16-bit elements of a row in one tile
    int stages;     // pipeline depth: one stage is multiplied while the others load
    int alignment;  // of the first tile, in bytes; dynamic shared memory itself is 16-byte aligned

    // Bytes of dynamic shared memory for `count` 16-bit elements, with room to align them.
    constexpr int bytes(int count) const { return 2 * count + (alignment > 16 ? alignment : 0); }
    // The same for a pipeline of tiles of `rows` rows.
    constexpr int pipeline_bytes(int rows) const { return bytes(rows * stages * columns); }
};

struct Cuda {
    static constexpr const char* NAME = "cuda";
    static constexpr int WAVE = 32;
    // wgmma's 128-byte swizzle repeats every 1024 bytes of address, hence the alignment.
    static constexpr SharedTiles TILES = {64, 3, 1024};
    // K of one mma_vectors call.
    static constexpr int VECTOR_K = 32;
    // The number of rows of a 16 x 16 fragment that a lane holds elements of.
    static constexpr int FRAGMENT_ROWS = 2;
    // Elements of shared memory per wave that transpose() needs.
    static constexpr int TRANSPOSE_SCRATCH = 1;
    // Adjacent columns in consecutive sums of a lane.
    static constexpr int ADJACENT_COLUMNS = 2;
    // Whether both halves of a wave hold the same fragment, which doubles its registers.
    static constexpr bool DUPLICATES_FRAGMENTS = false;
    // Whether attention branches around rescaling its output when no maximum changed.
    static constexpr bool SKIPS_RESCALING = true;
};

struct Hip {
    static constexpr const char* NAME = "rocm";
    static constexpr int WAVE = 32;
    // Two stages: loads go through registers, which act as a third.
    static constexpr SharedTiles TILES = {32, 2, 16};
    static constexpr int VECTOR_K = 16;
    static constexpr int FRAGMENT_ROWS = 1;
    static constexpr int TRANSPOSE_SCRATCH = 256;
    static constexpr int ADJACENT_COLUMNS = 1;
    static constexpr bool DUPLICATES_FRAGMENTS = true;
    static constexpr bool SKIPS_RESCALING = false;  // the branch costs more registers than a wave has
};

}  // namespace openmythos::gpu
