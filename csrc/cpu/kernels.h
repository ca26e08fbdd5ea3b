#pragma once

#include <stdint.h>

// The contract between the registrations and the kernels of one instruction set. Plain data only: this header is
// read by translation units with different -m flags, so it may not emit a single function.

namespace openmythos::cpu {

enum class Type : int32_t { float32, bfloat16 };

struct Matrix {
    void* data;
    int64_t stride;  // elements between rows; columns are contiguous
    Type type;
};

struct Threads {
    int64_t count;
    void (*run)(int64_t workers, void (*body)(void* context, int64_t worker), void* context);
    // One block per call, 64-byte aligned, owned by the calling thread and valid until its next request.
    void* (*scratch)(int64_t bytes);
};

struct LinearArgs {
    Matrix x, weight, out;
    int64_t n, k, o;
};

struct SwigluArgs {
    Matrix x, gate, up, down, out;
    int64_t n, d, i, o;
};

struct RmsNormArgs {
    Matrix x, residual, weight, out, sum;  // residual.data and sum.data may be null
    int64_t n, d;
    float eps;
};

struct MoeRouteArgs {
    Matrix logits;
    const float* bias;  // may be null
    int32_t* ids;
    int64_t ids_stride;
    float* weights;
    int64_t weights_stride;
    int32_t* counts;
    int64_t n, experts, k;
};

// A SwiGLU of the experts' width: an expert that serves every token with weight 1. A shared expert several times as
// wide is as many of them, since a SwiGLU is elementwise in its hidden channels.
struct SharedSlice {
    Matrix gate, up, down;
};

struct MoeExpertsArgs {
    Matrix x, out;
    const SharedSlice* shared;
    int64_t shared_count;
    const int32_t* ids;
    int64_t ids_stride;
    const float* weights;
    int64_t weights_stride;
    const void* gate_up;
    int64_t gate_up_strides[3];  // expert, half, row
    const void* down;
    int64_t down_strides[2];  // expert, row
    int64_t n, k, experts, i, d;
};

struct Tensor4 {
    void* data;
    int64_t strides[3];  // the innermost is 1
};

struct MlaArgs {
    Type type;
    Tensor4 q_nope, q_rope;  // (B, T, H, dn), (B, T, H, dr)
    Tensor4 latent, k_rope;  // (B, S, dc), (B, S, dr): the third stride is unused
    Tensor4 w_uk, w_uv;      // (H, dn, dc), (H, dv, dc): the third stride is unused
    Tensor4 out;             // (B, T, H, dv)
    float* lse;              // (B, H, T), may be null
    int64_t lse_strides[3];
    const int64_t* lengths;  // (B)
    int64_t b, t, s, h, dn, dr, dc, dv;
    float scale;
    bool causal, absorbed;
};

struct LoopStepArgs {
    Matrix h, e, block_out, h_out, h_new, h_out_new, x_next;  // x_next.data may be null
    const float *cum_p, *a, *b, *lora_down, *lora_scale, *lora_b, *halt_w, *halt_b, *norm_w;
    float* cum_p_new;
    const int32_t* t_rows;  // null: t serves every row
    int64_t n, d, rank, scale_rows, t, loop_dim;
    float threshold, eps;
};

struct RopeArgs {
    Type type;
    Tensor4 x, out;  // (B, T, H, d)
    const float* cos_sin;
    int64_t cos_sin_stride;
    int64_t b, t, h, d;
};

struct Kernels {
    void (*linear)(const Threads&, const LinearArgs&);
    void (*swiglu)(const Threads&, const SwigluArgs&);
    void (*rms_norm)(const Threads&, const RmsNormArgs&);
    void (*moe_route)(const Threads&, const MoeRouteArgs&);
    void (*moe_experts)(const Threads&, const MoeExpertsArgs&);
    void (*mla_attention)(const Threads&, const MlaArgs&);
    void (*loop_step)(const Threads&, const LoopStepArgs&);
    void (*rope)(const Threads&, const RopeArgs&);
};

struct Variant {
    const char* name;
    const Kernels* kernels;
};

// Best first, ending with an entry whose name is null; only those that this build has and this CPU can run.
const Variant* variants();
// The variant in use. Its choice is made once, from OPENMYTHOS_CPU_ISA or else the best; throws when that is invalid.
const Variant& current_variant();
void set_variant(const char* name);

}  // namespace openmythos::cpu
