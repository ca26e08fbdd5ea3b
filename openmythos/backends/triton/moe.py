"""moe_route, moe_experts with and without shared experts, and their backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from openmythos.backends.triton.rows import DTYPES, register_expert_rows, register_row, why_not

# Scores of a row, and counters of a block of slots, that the kernels hold in registers.
MAX_EXPERTS = 1024
# Pointers to shared experts are arguments of a kernel.
MAX_SHARED = 16
LARGE_BYTES = 2**31
# Positions of choices are counted in 32 bits, in blocks and tiles beyond the last one too.
MAX_CHOICES = 2**30

Shared = Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def _too_many(experts: int) -> str | None:
    return f"{experts} experts: the kernels take up to {MAX_EXPERTS}" if experts > MAX_EXPERTS else None


def _route_supports(logits: torch.Tensor, bias: torch.Tensor | None, k: int) -> str | None:
    return _too_many(logits.shape[1]) or why_not(logits, bias)


def _route_backward_supports(
    grad: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, n_experts: int, dtype: torch.dtype
) -> str | None:
    if dtype not in DTYPES:
        return f"dtype {dtype}: the kernels are float32, bfloat16 and float16"
    return _too_many(n_experts) or why_not(weights)


def _experts_supports(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> str | None:
    if any(tensor.dtype != x.dtype for tensor in (gate_up, down)):
        return "the tensors have different dtypes"
    if ids.stride(-1) != 1 and ids.shape[-1] > 1:
        return "the last dimension of ids is not contiguous"
    if ids.numel() > MAX_CHOICES:
        return f"{ids.numel()} choices of rows: the kernels count up to {MAX_CHOICES}"
    return _too_many(down.shape[0]) or why_not(x, weights, gate_up, down)


def _hidden_supports(x: torch.Tensor, *rest: torch.Tensor) -> str | None:
    return _experts_supports(x, *rest)


def _moe_supports(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    shared: Shared,
) -> str | None:
    if len(shared) > MAX_SHARED:
        return f"{len(shared)} shared experts: the kernels take up to {MAX_SHARED}"
    matrices = [matrix for expert in shared for matrix in expert]
    if any(matrix.dtype != x.dtype for matrix in matrices):
        return "the tensors have different dtypes"
    for part in zip(*shared, strict=True):
        # the compiler for AMD addresses small storages otherwise, and one program takes any of these matrices
        if len({matrix.untyped_storage().nbytes() < LARGE_BYTES for matrix in part}) > 1:
            return "some of the shared experts' matrices have storages of 2 GiB or more, and others less"
    return _experts_supports(x, ids, weights, gate_up, down) or why_not(x, *matrices)


def _backward_supports(
    grad: torch.Tensor,
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    hidden: torch.Tensor | None = None,
) -> str | None:
    if any(tensor is not None and tensor.dtype != x.dtype for tensor in (grad, hidden)):
        return "the tensors have different dtypes"
    return _experts_supports(x, ids, weights, gate_up, down)


register_row("moe_route", "moe.moe_route", _route_supports)
register_row("moe_route_backward", "moe.moe_route_backward", _route_backward_supports)
register_expert_rows(_experts_supports, _moe_supports)
register_row("moe_experts_hidden", "moe.moe_experts_hidden", _hidden_supports)
register_row("moe_experts_backward", "moe.moe_experts_backward", _backward_supports)
