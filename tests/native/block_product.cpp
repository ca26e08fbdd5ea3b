// Multiplies two blocks of rows with core/gpu/block_product.h as CUDA code, with instructions replaced by their
// definitions, and compares with a plain product. K is not a multiple of the tile's.

#include "shim.h"

#include "core/gpu/block_product.h"

using namespace openmythos::gpu;

constexpr int ROWS = 128, THREADS = 256, DEEP = 200, PIECES = 2 * ROWS * CHUNKS / THREADS;
using Shape = BlockShape<ROWS, ROWS, THREADS / WAVE, 4>;

static uint16_t operands[2 * ROWS][DEEP];
static float product[ROWS][ROWS];

static void multiply_blocks() {
    uint16_t* shared = shared_tiles();
    Accumulator sums[Shape::M][Shape::N] = {};
    AsyncCopy<PIECES> pieces;
    const auto at = [&](int i, int stage) {
        const int x = i * THREADS + thread_index();
        return shared + stage * 2 * ROWS * BLOCK_K + swizzled(x / CHUNKS, x % CHUNKS);
    };
    const auto begin = [&](int step, int stage) {
        for (int i = 0; i < PIECES; i++) {
            const int x = i * THREADS + thread_index(), column = step * BLOCK_K + x % CHUNKS * CHUNK;
            const bool inside = column < DEEP;
            pieces.issue(i, at(i, stage), &operands[x / CHUNKS][inside ? column : 0], inside);
        }
    };
    pipeline((DEEP + BLOCK_K - 1) / BLOCK_K, begin, [](int) {},
             [&](int stage) {
                 const uint16_t* tiles = shared + stage * 2 * ROWS * BLOCK_K;
                 multiply_tiles<bf16, Shape>(sums, tiles, tiles + ROWS * BLOCK_K);
             });
    for (int m = 0; m < Shape::M; m++)
        for (int n = 0; n < Shape::N; n++)
            for (int i = 0; i < 8; i++)
                product[Shape::row(m) + accumulator_row(i)][Shape::column(n) + accumulator_column(i)] = sums[m][n].x[i];
}

int main() {
    // Small integers: exact in bf16, and in every order of summation.
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
