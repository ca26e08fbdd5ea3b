#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "checks.h"
#include "runtime/plans.h"

// The same ops as in ops.cpp for the "cuda" device, which is what torch calls both vendors' GPUs. Arguments are checked
// without reading a value, since that would wait for the device.

// The tests run these files on tensors in the CPU's memory, before a driver that records.
#ifndef OPENMYTHOS_GPU_LIBRARY
#define OPENMYTHOS_GPU_LIBRARY openmythos_native
#define OPENMYTHOS_GPU_KEY CUDA
#define OPENMYTHOS_GPU_WHERE Where::gpu
#endif

namespace openmythos::on_gpu {

runtime::Runtime& gpu_runtime();
Type gpu_type(const Checks& check, const Tensor& x, const char* name);
gpu::Rows rows(const Checks& check, const Tensor& x, const char* name, int64_t n, int64_t d);
// On torch's current stream of the tensors' device.
void launch(const Checks& check, const runtime::Launch& plan);

void moe_route(const Tensor& logits, const std::optional<Tensor>& bias, const Tensor& ids, const Tensor& weights,
               const Tensor& counts);
void moe(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& gate_up, const Tensor& down,
         std::vector<Tensor> shared_gate, std::vector<Tensor> shared_up, std::vector<Tensor> shared_down,
         const Tensor& out);
void moe_experts(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& gate_up, const Tensor& down,
                 const Tensor& out);
void mla_attention(const Tensor& q_nope, const Tensor& q_rope, const Tensor& latent, const Tensor& k_rope,
                   const Tensor& w_uk, const Tensor& w_uv, double scale, bool causal,
                   const std::optional<Tensor>& seq_lens, const std::optional<Tensor>& block_table, bool absorbed,
                   const Tensor& out, const std::optional<Tensor>& lse);

}  // namespace openmythos::on_gpu
