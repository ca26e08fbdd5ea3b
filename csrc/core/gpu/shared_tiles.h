#pragma once

#include "vendor.h"

// Tiles of 16-bit rows in shared memory, and the pipeline that fills them. A tile holds BLOCK_K elements of each of its
// rows in chunks of 16 bytes, swizzled so that reading eight rows has no bank conflicts; on NVIDIA this is the 128-byte
// swizzle of wgmma's descriptors.

namespace openmythos::gpu {

constexpr int BLOCK_K = Vendor::TILES.columns, STAGES = Vendor::TILES.stages;
constexpr int CHUNK = 8, CHUNKS = BLOCK_K / CHUNK;

// Offset of a chunk of a row in a tile, in elements.
OPENMYTHOS_DEVICE int swizzled(int row, int chunk) {
    const int turn = CHUNKS == 8 ? row : row / 2;
    return row * BLOCK_K + (chunk ^ turn % CHUNKS) * CHUNK;
}

// The first tile in dynamic shared memory.
OPENMYTHOS_DEVICE uint16_t* shared_tiles() {
    OPENMYTHOS_DYNAMIC_SHARED(memory);
    return align_tiles(memory);
}

// A software pipeline of `steps` steps over COUNT stages: load(step, stage) issues the copies of a step, commit(stage)
// completes them where the hardware does not (AsyncCopy), compute(stage) uses the tiles. COUNT - 1 steps load while one
// computes.
template <int COUNT = STAGES, class Load, class Commit, class Compute>
OPENMYTHOS_DEVICE void pipeline(int steps, Load load, Commit commit, Compute compute) {
#pragma unroll
    for (int s = 0; s < COUNT - 1; s++) {
        if (s < steps) load(s, s), commit(s);
        commit_copy_group();
    }
    int stage = 0, next = COUNT - 1;
    for (int s = 0; s < steps; s++) {
        // After this barrier every wave has finished step s - 1, whose stage is then free.
        wait_copy_groups<COUNT - 2>();
        const bool more = s + COUNT - 1 < steps;
        if (more) load(s + COUNT - 1, next);
        commit_copy_group();
        compute(stage);
        if (more) commit(next);
        stage = stage + 1 == COUNT ? 0 : stage + 1;
        next = next + 1 == COUNT ? 0 : next + 1;
    }
}

}  // namespace openmythos::gpu
