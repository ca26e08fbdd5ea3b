// What kernels use besides arithmetic: shared and private memory, calls, generic pointers, lanes, atomics.
#include "device.h"

typedef _Float16 half2 __attribute__((ext_vector_type(2)));

__constant__ int table[5] = {3, 1, 4, 1, 5};

static __device__ __noinline__ int folded(const int* p, int n) {
    int sum = 0;
    for (int i = 0; i < n; i++) sum = sum * 3 + p[i & 7];
    return sum;
}

template <class T>
static __device__ void atomic_add(T* p, T value) {
    __hip_atomic_fetch_add(p, value, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}

// n work-items a block of three dimensions; every block writes 4 n words and 2 n floats.
KERNEL features(int* words, float* floats, const half2* halves) {
    __shared__ int bins[8];
    __shared__ int top;
    int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int n = blockDim.x * blockDim.y * blockDim.z;
    int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    words += b * n * 4;
    floats += b * n * 2;
    if (t < 8) bins[t] = 0;
    if (t == 0) top = 0;
    barrier();
    atomic_add(&bins[(t * 7 + b) & 7], t);
    __hip_atomic_fetch_max(&top, t ^ 21, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP);
    barrier();
    words[t] = bins[t & 7] + top * 1000;
    int mine[8];
    for (int i = 0; i < 8; i++) mine[i] = t * i + table[(t + i) % 5];
    words[n + t] = folded(mine, t % 11);
    words[2 * n + t] =
        __builtin_popcount(ballot(t % 3 == 0)) + 100 * (ballot(t == 5) != 0) + shuffle(t, (t * 5) & 31) * 1000;
    int* either = t & 1 ? &bins[t & 7] : (t & 2 ? &mine[t & 7] : words + t);
    if (*either != (t & 1 ? bins[t & 7] : t & 2 ? mine[t & 7] : words[t])) words[2 * n + t] = -1;
    words[3 * n + t] = shuffle(t, lane() - 3) + 1000 * shuffle(t, lane() + 2);
    half2 x = halves[t], y = halves[t + n], z = x * y + x;
    floats[t] = (float)z.x + (float)z.y;
    floats[n + t] = __builtin_amdgcn_fdot2(x, y, 1.5f, false);
}

KERNEL memory_atomics(int* words, float* floats, unsigned long long* wide) {
    int t = threadIdx.x + blockIdx.x * blockDim.x;
    atomic_add(&floats[t & 1], (float)t);
    atomic_add(&wide[0], 1ull << 33 | t);
    __hip_atomic_fetch_or(&words[0], 1 << (t & 31), __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
    __hip_atomic_fetch_min(&words[1], t - 50, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
    int seen = words[2];
    while (!__hip_atomic_compare_exchange_strong(&words[2], &seen, seen + t, __ATOMIC_RELAXED, __ATOMIC_RELAXED,
                                                 __HIP_MEMORY_SCOPE_AGENT));
}

// Sums rows of n floats, once by lanes and once through the LDS that the launch asks for.
KERNEL reduce(const float* x, float* out, int n, float scale) {
    __shared__ float part[32];
    extern __shared__ float all[];
    float value = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) value += x[blockIdx.x * n + i];
    all[threadIdx.x] = value;
    for (int d = 16; d; d >>= 1) value += shuffle(value, lane() ^ d);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = value;
    barrier();
    if (threadIdx.x == 0) {
        float first = 0, second = 0;
        for (int i = 0; i < blockDim.x / 32; i++) first += part[i];
        for (int i = 0; i < blockDim.x; i++) second += all[i];
        out[blockIdx.x * 2] = first * scale;
        out[blockIdx.x * 2 + 1] = second * scale;
    }
}

KERNEL endless(volatile int* x) { while (!*x); }
