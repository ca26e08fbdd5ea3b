// The part of HIP that these programs use, on compiler built-ins only, since ROCm's headers need all of ROCm.
#pragma once
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __constant__ __attribute__((constant))
#define __noinline__ __attribute__((noinline))
#define KERNEL extern "C" __global__ void

struct Index {
    int x, y, z;
};
#define threadIdx                                                                     \
    Index {                                                                           \
        (int)__builtin_amdgcn_workitem_id_x(), (int)__builtin_amdgcn_workitem_id_y(), \
            (int)__builtin_amdgcn_workitem_id_z()                                     \
    }
#define blockIdx                                                                        \
    Index {                                                                             \
        (int)__builtin_amdgcn_workgroup_id_x(), (int)__builtin_amdgcn_workgroup_id_y(), \
            (int)__builtin_amdgcn_workgroup_id_z()                                      \
    }
#define blockDim                                                                            \
    Index {                                                                                 \
        (int)__builtin_amdgcn_workgroup_size_x(), (int)__builtin_amdgcn_workgroup_size_y(), \
            (int)__builtin_amdgcn_workgroup_size_z()                                        \
    }

#define gridDim                                                                                             \
    Index {                                                                                                 \
        (int)__builtin_amdgcn_grid_size_x() / blockDim.x, (int)__builtin_amdgcn_grid_size_y() / blockDim.y, \
            (int)__builtin_amdgcn_grid_size_z() / blockDim.z                                                \
    }

static __device__ inline void barrier() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
static __device__ inline int lane() { return __builtin_amdgcn_mbcnt_lo(~0u, 0); }
// The value of another lane, or the lane's own if `from` is not a lane.
static __device__ inline int shuffle(int value, int from) {
    return __builtin_amdgcn_ds_bpermute((from < 0 || from > 31 ? lane() : from) << 2, value);
}
static __device__ inline float shuffle(float value, int from) {
    return __builtin_bit_cast(float, shuffle(__builtin_bit_cast(int, value), from));
}
static __device__ inline unsigned ballot(bool on) { return __builtin_amdgcn_ballot_w32(on); }
