// Runs mma_vectors of core/gpu/cuda/mma.h lane by lane, with the instruction replaced by its definition in the PTX
// manual (m16n8k16, figures of the fragments), and compares with a plain product.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#define __device__
#define __global__
#define __shared__
struct Index {
    unsigned x = 0, y = 0, z = 0;
} threadIdx, blockDim, blockIdx;
inline void __syncthreads() {}
inline void __syncwarp() {}
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline unsigned __ballot_sync(unsigned, bool) { return 0; }
inline void atomicAdd(int*, int) {}
template <class T>
T __shfl_xor_sync(unsigned, T x, int) {
    return x;
}

// The operands of each instruction by lane, in the order of the calls.
struct Given {
    float* c;
    uint32_t a[4], b[2];
};
static std::vector<Given> given[32];
static void record(float* c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    given[threadIdx.x].push_back({c, {a0, a1, a2, a3}, {b0, b1}});
}

#include "core/gpu/fragments.h"

using namespace openmythos::gpu;

static float half(uint32_t word, int which) {
    uint32_t bits = (which ? word >> 16 : word & 0xffff) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// Element (row, column) of a 16 x 16 A, (k, n) of a 16 x 8 B, as the manual lays them out over the lanes.
static float a_of(size_t call, int row, int k) {
    int lane = row % 8 * 4 + k % 8 / 2, word = row / 8 + k / 8 * 2;
    return half(given[lane][call].a[word], k % 2);
}
static float b_of(size_t call, int k, int n) { return half(given[n * 4 + k % 8 / 2][call].b[k / 8], k % 2); }

int main() {
    // Small integers: exact in bf16, and in every order of summation.
    float a[16][VECTOR_K], b[16][VECTOR_K];
    unsigned state = 1;
    for (auto* matrix : {&a, &b})
        for (auto& row : *matrix)
            for (float& x : row) state = state * 1664525 + 1013904223, x = float(int(state >> 28) - 8);
    static float acc[32][8];
    for (threadIdx.x = 0; threadIdx.x < 32; threadIdx.x++) {
        Words words[2][2] = {};
        for (int v = 0; v < 2; v++) {
            for (int j = 0; j < 8; j++) {
                int row = vector_row(v), column = vector_column(v) + j;
                float of[2] = {a[row][column], b[row][column]};
                for (int m = 0; m < 2; m++) {
                    uint32_t bits;
                    std::memcpy(&bits, &of[m], 4);
                    words[m][v].w[j / 2] |= (bits >> 16) << (16 * (j % 2));
                }
            }
        }
        mma_vectors<bf16>(acc[threadIdx.x], words[0], words[1]);
    }
    for (size_t call = 0; call < given[0].size(); call++) {
        for (int lane = 0; lane < 32; lane++) {
            for (int i = 0; i < 4; i++) {
                int row = lane / 4 + i / 2 * 8, n = lane % 4 * 2 + i % 2;
                for (int k = 0; k < 16; k++) given[lane][call].c[i] += a_of(call, row, k) * b_of(call, k, n);
            }
        }
    }
    int wrong = 0, seen = 0;
    bool written[16][16] = {};
    for (threadIdx.x = 0; threadIdx.x < 32; threadIdx.x++) {
        for (int i = 0; i < 8; i++) {
            int m = vector_m(i), n = vector_n(i);
            float want = 0.f;
            for (int k = 0; k < VECTOR_K; k++) want += a[m][k] * b[n][k];
            wrong += acc[threadIdx.x][i] != want;
            seen += !written[m][n], written[m][n] = true;
        }
    }
    std::printf("%zu instructions, %d elements, %d wrong\n", given[0].size(), seen, wrong);
}
