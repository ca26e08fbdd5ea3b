"""Mixture of SwiGLU experts with top-k routing (DeepSeekMoE, Dai et al., 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from openmythos.ops.precision import wide


def moe_route(
    logits: torch.Tensor, bias: torch.Tensor | None, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose k experts per row by logits + bias, weighted by the softmax of their raw logits.

    Equal to softmax over all experts, gather, renormalise. Ties go to the lower id, NaN counts as -inf.
    logits (N, E), bias (E) -> ids (N, k) int32, weights (N, k) float32, counts (E) int32, the rows per expert.
    """
    raw = logits.to(wide(logits.dtype))
    score = raw if bias is None else raw + bias.to(raw.dtype)
    score = score.masked_fill(score.isnan(), float("-inf"))
    ids = score.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    weights = F.softmax(raw.gather(-1, ids), dim=-1)
    counts = torch.zeros(logits.shape[1], dtype=torch.int32, device=logits.device)
    counts.scatter_add_(0, ids.flatten(), torch.ones_like(ids.flatten(), dtype=torch.int32))
    return ids.to(torch.int32), weights, counts


def moe_route_backward(
    grad: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, n_experts: int, dtype: torch.dtype
) -> torch.Tensor:
    """d logits: weights * (grad - sum(grad * weights)) at the chosen ids, zero elsewhere. (N, E) in `dtype`."""
    local = weights * (grad - (grad * weights).sum(-1, keepdim=True))
    return local.new_zeros(ids.shape[0], n_experts).scatter(1, ids.long(), local).to(dtype)


def group_by_expert(ids: torch.Tensor, n_experts: int) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """(expert, rows, column of `ids`) for every expert that serves a row."""
    order = ids.flatten().sort(stable=True).indices
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < n_experts:
        raise ValueError(f"ids holds {int(ids.min())} to {int(ids.max())}: allowed is 0 to {n_experts - 1}")
    ends = torch.bincount(ids.flatten(), minlength=n_experts).cumsum(0).tolist()
    groups, start = [], 0
    for expert, end in enumerate(ends):
        if end > start:
            slots = order[start:end]
            groups.append((expert, slots // ids.shape[1], slots % ids.shape[1]))
        start = end
    return groups


def moe_experts(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """out[n] = sum_j weights[n, j] * down_e(silu(gate_e x_n) * up_e x_n) with e = ids[n, j].

    x (N, D), ids and weights (N, k), gate_up (E, 2, I, D), down (E, D, I) -> (N, D).
    """
    out = torch.zeros(x.shape, dtype=wide(x.dtype), device=x.device)
    for expert, rows, column in group_by_expert(ids, gate_up.shape[0]):
        gate, up = F.linear(x[rows], gate_up[expert].flatten(0, 1)).chunk(2, dim=-1)
        y = F.linear(F.silu(gate) * up, down[expert])
        out = out.index_add(0, rows, weights[rows, column, None].to(out.dtype) * y.to(out.dtype))
    return out.to(x.dtype)


def moe_experts_hidden(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """moe_experts, and gate_e x_n and up_e x_n of every choice, (N, k, 2, I), for the backward."""
    hidden = x.new_zeros((*ids.shape, *gate_up.shape[1:3]))
    for expert, rows, column in group_by_expert(ids, gate_up.shape[0]):
        hidden[rows, column] = F.linear(x[rows], gate_up[expert].flatten(0, 1)).unflatten(-1, (2, -1))
    return moe_experts(x, ids, weights, gate_up, down), hidden


def moe_experts_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    hidden: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients with respect to x, weights, gate_up and down; gate and up are `hidden`, or recomputed.

    The gradient of a routing weight is <grad down_e, silu(gate) * up>, so the expert's output is never formed
    (SonicMoE, arXiv 2512.14080).
    """
    compute = wide(x.dtype)
    grad_x = torch.zeros(x.shape, dtype=compute, device=x.device)
    grad_weights = torch.zeros_like(weights)
    grad_gate_up, grad_down = torch.zeros_like(gate_up), torch.zeros_like(down)
    for expert, rows, column in group_by_expert(ids, gate_up.shape[0]):
        inputs, outer = x[rows], grad[rows].to(x.dtype)
        weight = weights[rows, column, None].to(compute)
        if hidden is None:
            gate, up = F.linear(inputs, gate_up[expert].flatten(0, 1)).to(compute).chunk(2, dim=-1)
        else:
            gate, up = hidden[rows, column].to(compute).unbind(-2)
        sigmoid = torch.sigmoid(gate)
        act = gate * sigmoid * up
        unweighted = (outer @ down[expert]).to(compute)
        grad_weights[rows, column] = (unweighted * act).sum(-1).to(weights.dtype)
        grad_down[expert] = outer.T @ (weight * act).to(x.dtype)
        grad_hidden = weight * unweighted
        grad_gate = grad_hidden * up * sigmoid * (1 + gate * (1 - sigmoid))
        grad_both = torch.cat((grad_gate, grad_hidden * gate * sigmoid), dim=-1).to(x.dtype)
        grad_gate_up[expert] = (grad_both.T @ inputs).unflatten(0, (2, -1))
        grad_x.index_add_(0, rows, (grad_both @ gate_up[expert].flatten(0, 1)).to(compute))
    return grad_x.to(x.dtype), grad_weights, grad_gate_up, grad_down
