#pragma once

#include "../core/types.h"

// The only argument of the kernels: a struct passed by value, with one layout on the host, the CPU and the GPU. Strides
// count elements; the innermost is 1.

namespace openmythos {

struct LoopStepArgs {
    Matrix h, e, block_out, h_new, x_next;  // x_next.data is null in the last loop
    Matrix h_out, h_out_new;                // float32
    const float *cum_p, *a, *b, *lora_down, *lora_scale, *lora_b, *halt_w, *halt_b, *norm_w;
    float* cum_p_new;
    const int32_t* t_rows;  // null: every row is at loop t
    int64_t n;
    int32_t d, rank, scale_rows, loop_dim, t;
    int32_t aligned;  // as in RmsNormArgs; set by plan.cpp, as are the frequencies
    float threshold, eps;
    // -2 log2(theta) / loop_dim as the sum of two floats; times i it is the exponent of the i-th loop frequency.
    float frequency_hi, frequency_lo;
};

// Calls visit(pointer) for each parameter vector and matrix that GPU kernels read 16 bytes at a time.
template <class Visit>
inline void for_each_wide_parameter(const LoopStepArgs& p, const Visit& visit) {
    visit(p.a), visit(p.b), visit(p.lora_down), visit(p.lora_b), visit(p.halt_w), visit(p.norm_w);
}

}  // namespace openmythos
