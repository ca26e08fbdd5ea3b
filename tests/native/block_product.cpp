// Multiplies two blocks of rows with csrc/gpu/block_tiles.h as CUDA sees it, instructions replaced by their
// definitions, and compares with a plain product. The depth is no multiple of a slab's.

#include "cuda_host.h"

#include "gpu/block_tiles.h"

using namespace openmythos::gpu;

constexpr int ROWS = 128, THREADS = 256, DEEP = 200, PIECES = 2 * ROWS * CHUNKS / THREADS;
using Shape = Block<ROWS, ROWS, THREADS / WAVE, 4>;

static uint16_t operands[2 * ROWS][DEEP];
static float product[ROWS][ROWS];

static void multiply_blocks() {
    uint16_t* shared = slabs();
    Sum sums[Shape::M][Shape::N] = {};
    Carried<PIECES> pieces;
    const auto at = [&](int i, int stage) {
        const int x = i * THREADS + thread_index();
        return shared + stage * 2 * ROWS * DEPTH + slab_at(x / CHUNKS, x % CHUNKS);
    };
    const auto begin = [&](int step, int stage) {
        for (int i = 0; i < PIECES; i++) {
            const int x = i * THREADS + thread_index(), column = step * DEPTH + x % CHUNKS * CHUNK;
            const bool inside = column < DEEP;
            pieces.begin(i, at(i, stage), &operands[x / CHUNKS][inside ? column : 0], inside);
        }
    };
    stream_slabs((DEEP + DEPTH - 1) / DEPTH, begin, [](int) {},
                 [&](int stage) {
                     const uint16_t* slab = shared + stage * 2 * ROWS * DEPTH;
                     multiply_slab<bf16, Shape>(sums, slab, slab + ROWS * DEPTH);
                 });
    for (int m = 0; m < Shape::M; m++)
        for (int n = 0; n < Shape::N; n++)
            for (int i = 0; i < 8; i++)
                product[Shape::row(m) + sum_row(i)][Shape::column(n) + sum_column(i)] = sums[m][n].x[i];
}

int main() {
    // Small whole numbers: exact in bf16, and in every order of summation.
    unsigned state = 1;
    for (auto& row : operands)
        for (uint16_t& x : row) state = state * 1664525 + 1013904223, x = host::to_bf16(float(int(state >> 28) - 8));
    for (auto& row : product)
        for (float& x : row) x = NAN;
    host::body = multiply_blocks, blockDim.x = THREADS;
    host::run_block(THREADS);
    int wrong = 0;
    for (int i = 0; i < ROWS; i++) {
        for (int j = 0; j < ROWS; j++) {
            float want = 0.f;
            for (int k = 0; k < DEEP; k++)
                want += host::to_float(operands[i][k], true) * host::to_float(operands[ROWS + j][k], true);
            wrong += !(product[i][j] == want);
        }
    }
    std::printf("%d of %d wrong\n", wrong, ROWS * ROWS);
}
