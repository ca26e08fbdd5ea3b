// One 16 x 16 x 16 product of every kind that gfx1151 has, and dot products of bytes.
#include "device.h"

typedef short short16 __attribute__((ext_vector_type(16)));
typedef _Float16 half16 __attribute__((ext_vector_type(16)));
typedef float float8 __attribute__((ext_vector_type(8)));
typedef int int4 __attribute__((ext_vector_type(4)));
typedef int int8 __attribute__((ext_vector_type(8)));

#define ROW(r) ((2 * (r) + threadIdx.x / 16) * 16 + threadIdx.x % 16)

template <class V, class T>
static __device__ void operands(const T* a, const T* b, V& x, V& y) {
    for (int k = 0; k < 16; k++) {
        x[k] = a[threadIdx.x % 16 * 16 + k];
        y[k] = b[k * 16 + threadIdx.x % 16];
    }
}

KERNEL bfloat16(const short* a, const short* b, float* c) {
    short16 x, y;
    float8 sum;
    operands(a, b, x, y);
    for (int r = 0; r < 8; r++) sum[r] = c[ROW(r)];
    sum = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(x, y, sum);
    for (int r = 0; r < 8; r++) c[ROW(r)] = sum[r];
}

// Results of 16 bits, in the high halves.
KERNEL float16(const _Float16* a, const _Float16* b, _Float16* c) {
    half16 x, y, sum = {};
    operands(a, b, x, y);
    for (int r = 0; r < 8; r++) sum[2 * r + 1] = c[ROW(r)];
    sum = __builtin_amdgcn_wmma_f16_16x16x16_f16_w32(x, y, sum, true);
    for (int r = 0; r < 8; r++) c[ROW(r)] = sum[2 * r + 1];
}

// Signed by unsigned bytes.
KERNEL bytes(const signed char* a, const unsigned char* b, int* c) {
    int4 x, y;
    int8 sum = {};
    for (int k = 0; k < 16; k++) {
        ((signed char*)&x)[k] = a[threadIdx.x % 16 * 16 + k];
        ((unsigned char*)&y)[k] = b[k * 16 + threadIdx.x % 16];
    }
    sum = __builtin_amdgcn_wmma_i32_16x16x16_iu8_w32(true, x, false, y, sum, false);
    for (int r = 0; r < 8; r++) c[ROW(r)] = sum[r];
}

KERNEL dot4(const int* a, const int* b, int* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i] = __builtin_amdgcn_sudot4(true, a[i], true, b[i], 5, false);
    out[n + i] = __builtin_amdgcn_sudot4(true, a[i], false, b[i], 0, false);
    out[2 * n + i] = __builtin_amdgcn_udot4(a[i], b[i], 7, false);
}
