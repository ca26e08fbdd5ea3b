#pragma once

#include <stdint.h>

// What the host hands to each kernel: one struct by value, read alike by both sides. Strides count elements; the last
// one is 1.

namespace openmythos::gpu {

enum class Type : int32_t { float32, bfloat16, float16 };
constexpr int TYPES = 3;

struct Rows {
    void* data;
    int64_t stride;
    Type type;
    int32_t unused;
};

struct RmsNormParams {
    Rows x, residual, out, sum;  // data is null where there is none
    const void* weight;
    Type weight_type;
    int32_t aligned;  // every row and the weight begin at 16 bytes, and d is a multiple of 8
    int64_t n;
    int32_t d;
    float eps;
};

struct LoopStepParams {
    Rows h, e, block_out, h_new, x_next;  // x_next.data is null on the last loop
    Rows h_out, h_out_new;                // of float32
    const float *cum_p, *a, *b, *lora_down, *lora_scale, *lora_b, *halt_w, *halt_b, *norm_w;
    float* cum_p_new;
    const int32_t* t_rows;  // null: every row is at loop t
    int64_t n;
    int32_t d, rank, scale_rows, loop_dim, t;
    int32_t aligned;
    float threshold, eps;
    // -2 log2(theta) / loop_dim in two floats: the exponent of the i-th frequency of the loop embedding is i times it.
    float frequency_hi, frequency_lo;
};

}  // namespace openmythos::gpu
