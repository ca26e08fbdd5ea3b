"""moe_experts on NVIDIA's newer GPUs through torch.nn.functional.grouped_mm, CUTLASS's grouped product."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from openmythos.backends.flat import register_experts

ALIGNMENT = 16


def moe_experts(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """Products of the sorted rows, then each row's results gathered and summed: deterministic, without a host sync."""
    experts, k = down.shape[0], ids.shape[1]
    order = ids.flatten().sort(stable=True).indices
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=x.device)
    counts = torch.zeros(experts, dtype=torch.int32, device=x.device)
    counts.scatter_add_(0, ids.flatten().long(), torch.ones_like(ids.flatten(), dtype=torch.int32))
    ends = counts.cumsum(0, dtype=torch.int32)
    gate, up = F.grouped_mm(x[order // k], gate_up.flatten(1, 2).transpose(1, 2), offs=ends).chunk(2, dim=-1)
    y = F.grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=ends)
    return torch.einsum("nkd,nk->nd", y[place].view(-1, k, y.shape[1]).float(), weights.float()).to(x.dtype)


def _supports(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> str | None:
    if not x.is_cuda or torch.version.hip:
        return "grouped_mm is one kernel on NVIDIA's GPUs only, elsewhere a loop over experts that waits for the host"
    if torch.cuda.get_device_capability(x.device) < (9, 0):
        return "grouped_mm is one kernel from sm90 on, before that a loop over experts that waits for the host"
    if any(tensor.dtype != torch.bfloat16 for tensor in (x, gate_up, down)):
        return "grouped_mm's kernel is for bfloat16"
    if gate_up.stride(1) != gate_up.shape[2] * gate_up.stride(2):
        return "an expert's gate and up do not follow each other in memory"
    for tensor in (x, gate_up, down):
        strides = [stride * tensor.element_size() for stride in tensor.stride()[:-1]]
        if tensor.stride(-1) != 1 or any(stride % ALIGNMENT for stride in strides):
            return f"grouped_mm needs strides of {ALIGNMENT} bytes and a contiguous last dimension"
    return None


def _no_shared(*_args: object) -> str:
    return "grouped_mm computes the routed experts alone"


register_experts("torch", moe_experts, _supports, moe_experts, _no_shared, "cuda")
