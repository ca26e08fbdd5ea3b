"""What the forward and the backward pass of loop_step share: a tile of rows, the loop embedding, and host choices.

A program holds whole rows in registers, [ROWS, BLOCK]; columns past the width are 0.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from openmythos.ops.loop_step import LoopStep, LoopStepBackward, LoopStepInPlace

# The LoRA matrices are read once per tile of rows. Up to INSIDE elements per matrix they stay in the L1 cache (two of
# 96 KB), so that rereading them is free beside the rows; with few rows, up to INSIDE_FEW elements (two of 512 KB, 10
# us for one processor) beat two more launches. Above that, two products outside the kernel are faster.
INSIDE, INSIDE_FEW, FEW = 3 * 2**13, 2**17, 64
THETA = 10000.0
# Number of loop indices in one table of embeddings.
DEPTHS = 64


class Gradients(NamedTuple):
    """The gradients of the step's results; that of x_next is None on the last loop."""

    h: torch.Tensor
    h_out: torch.Tensor
    cum_p: torch.Tensor
    x_next: torch.Tensor | None


class Outputs(NamedTuple):
    """The gradients of rows, which kernels write: `new` is that of h'; `block` is None if other code computes it.

    Without LoRA `new` is block_out's gradient, in its dtype. With LoRA the parameters' sums need the gradient of the
    delta in float32; subtracting it from block_out's gradient would lose digits.
    """

    h: torch.Tensor
    e: torch.Tensor
    block: torch.Tensor | None
    new: torch.Tensor
    cum: torch.Tensor


def lora_inside(rows: int, width: int, rank: int, widest: int) -> bool:
    """Whether the kernel, which holds rows of up to `widest` columns, multiplies by the LoRA matrices itself."""
    return width <= widest and rank * width <= (INSIDE_FEW if rows <= FEW else INSIDE)


def _frequencies(loop_dim: int, device: torch.device) -> torch.Tensor:
    return THETA ** (-torch.arange(0, loop_dim, 2, device=device, dtype=torch.float32) / max(loop_dim, 1))


@functools.lru_cache(maxsize=64)
def frequencies(loop_dim: int, device: torch.device) -> torch.Tensor:
    """Frequencies of the loop embedding, (loop_dim / 2) float32: a constant of the model, computed once."""
    return _frequencies(loop_dim, device)


@functools.lru_cache(maxsize=64)
def _embeddings(loop_dim: int, device: torch.device, block: int) -> torch.Tensor:
    width = triton.cdiv(loop_dim, 16) * 16
    angles = torch.arange(DEPTHS * block, DEPTHS * (block + 1), device=device)[:, None] * _frequencies(
        loop_dim, device
    )
    table = torch.zeros((DEPTHS, width), dtype=torch.float32, device=device)
    table[:, :loop_dim] = torch.cat((angles.sin(), angles.cos()), dim=-1)[:, :loop_dim]
    return table


def embedding(loop_dim: int, device: torch.device, t: int) -> torch.Tensor:
    """[sin | cos] of loop index t, at least (loop_dim) float32: a row of a table that the first step computes."""
    return _embeddings(loop_dim, device, t // DEPTHS)[t % DEPTHS]


def depth_of(call: LoopStep | LoopStepInPlace | LoopStepBackward) -> int | torch.Tensor:
    """The loop of every row, or each row's own (N)."""
    return call.t if call.t_rows is None else call.t_rows.contiguous()


def scale_rows(lora_scale: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
    """lora_scale[min(t, L - 1)]: (1, r), or (N, r) for a tensor t."""
    last = lora_scale.shape[0] - 1
    if isinstance(t, torch.Tensor):
        return lora_scale.index_select(0, t.clamp(max=last))
    return lora_scale[min(t, last)][None]


@triton.jit
def _sine(b_x, b_quarters):
    """sin(x + quarters pi / 2) to 1e-7 for |x| below 10^4, without a library's slow path for huge arguments."""
    b_n = tl.floor(b_x * 0.6366197723675814 + 0.5)
    # pi / 2 in three parts; b_n times each of the first two is exact
    b_r = ((b_x - b_n * 1.5703125) - b_n * 4.837512969970703125e-4) - b_n * 7.54978995489188216e-8
    b_z = b_r * b_r
    b_sin = b_r + b_r * b_z * (-1.6666654611e-1 + b_z * (8.3321608736e-3 - b_z * 1.9515295891e-4))
    b_cos = 1.0 - 0.5 * b_z
    b_cos += b_z * b_z * (4.166664568298827e-2 + b_z * (-1.388731625493765e-3 + b_z * 2.443315711809948e-5))
    b_quadrant = b_n.to(tl.int32) + b_quarters
    b_value = tl.where((b_quadrant & 1) == 0, b_sin, b_cos)
    return tl.where((b_quadrant & 2) == 0, b_value, -b_value)


@triton.jit
def loop_embedding(b_t, p_embedding, o_d, loop_dim, PER_ROW: tl.constexpr):
    """[sin | cos] of t * frequency in the first loop_dim channels, 0 in the others.

    b_t is a scalar, for a result [BLOCK], or [ROWS, 1], for [ROWS, BLOCK]. p_embedding holds frequencies if rows have
    their own t, else the values, [BLOCK] for all rows.
    """
    m_d = o_d < loop_dim
    if PER_ROW:
        half = (loop_dim + 1) // 2
        b_quarters = (o_d >= half).to(tl.int32)
        b_frequency = tl.load(p_embedding + o_d - b_quarters * half, mask=m_d, other=0.0)
        b_value = tl.where(m_d, _sine(b_t.to(tl.float32) * b_frequency, b_quarters), 0.0)
    else:
        b_value = tl.load(p_embedding + o_d, mask=m_d, other=0.0)
    return b_value


@triton.jit
def load_rows(p_x, o_row, stride, o_d, mask):
    """Rows of a tensor that is read once, [ROWS, BLOCK]: bypasses L1, which is left to the parameters."""
    return tl.load(p_x + o_row * stride + o_d[None, :], mask=mask, other=0.0, cache_modifier=".cg")


@triton.jit
def store_rows(p_x, o_row, stride, o_d, mask, b_x):
    """Rows, [ROWS, BLOCK], in the tensor's dtype."""
    tl.store(p_x + o_row * stride + o_d[None, :], b_x.to(p_x.dtype.element_ty), mask=mask)


@triton.jit
def load_vector(p_x, o_d, m_d):
    """A parameter for every column, [BLOCK] in float32."""
    return tl.load(p_x + o_d, mask=m_d, other=0.0).to(tl.float32)


@triton.jit
def load_row(p_x, o_d, m_d):
    """`load_rows` of one row, [BLOCK]."""
    return tl.load(p_x + o_d, mask=m_d, other=0.0, cache_modifier=".cg")


@triton.jit
def store_row(p_x, o_d, m_d, b_x):
    """`store_rows` of one row, [BLOCK]."""
    tl.store(p_x + o_d, b_x.to(p_x.dtype.element_ty), mask=m_d)


@triton.jit
def load_depths(p_t, o_row, m_row, t, PER_ROW: tl.constexpr):
    """The loop index of each row, [ROWS, 1]."""
    return tl.load(p_t + o_row, mask=m_row, other=0).to(tl.int32) if PER_ROW else tl.full(o_row.shape, t, tl.int32)


@triton.jit
def halting(b_logit, b_cum, threshold):
    """p, the weight of this step, and the new cumulative p, all [ROWS, 1] (Graves, arXiv 1603.08983)."""
    b_p = tl.sigmoid(b_logit)
    b_running = b_cum < threshold
    b_total = b_cum + b_p
    b_weight = tl.where(b_total >= threshold, tl.maximum(1.0 - b_cum, 0.0), b_p)
    return b_p, tl.where(b_running, b_weight, 0.0), tl.where(b_running, b_total, b_cum)


@triton.jit
def halting_gradients(b_logit, b_cum, b_weight_grad, b_p_grad, threshold):
    """The weight of this step, and the gradients of the logit and of cum_p, all [ROWS, 1]."""
    b_p, b_weight, _total = halting(b_logit, b_cum, threshold)
    b_running = b_cum < threshold
    b_crosses = b_cum + b_p >= threshold
    b_weight_grad = tl.where(b_running, b_weight_grad, 0.0)
    b_of_p = tl.where(b_crosses, 0.0, b_weight_grad) + tl.where(b_running, b_p_grad, 0.0)
    b_of_cum = b_p_grad - tl.where(b_crosses & (b_cum <= 1.0), b_weight_grad, 0.0)
    return b_weight, b_of_p * b_p * (1.0 - b_p), b_of_cum


@triton.jit
def update(p_h, p_e, p_block, p_A, p_B, o_row, h_stride, e_stride, block_stride, o_d, m_d, mask):
    """A h + B e + block_out, h and e, all [ROWS, BLOCK] in float32."""
    b_h = load_rows(p_h, o_row, h_stride, o_d, mask).to(tl.float32)
    b_e = load_rows(p_e, o_row, e_stride, o_d, mask).to(tl.float32)
    b_new = b_h * load_vector(p_A, o_d, m_d) + b_e * load_vector(p_B, o_d, m_d)
    return b_new + load_rows(p_block, o_row, block_stride, o_d, mask).to(tl.float32), b_h, b_e
