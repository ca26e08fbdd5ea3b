"""loop_step: LoRA delta, LTI injection, ACT halting and the next loop's input norm in one pass over the rows."""

from __future__ import annotations

from typing import NamedTuple

import torch

from openmythos import dispatch, reference
from openmythos.ops._library import accepts_backend, autograd, define, direct
from openmythos.reference.precision import wide

_STATE = "Tensor h, Tensor e, Tensor block_out, Tensor h_out, Tensor cum_p"
_PARAMS = (
    "Tensor A, Tensor B, Tensor lora_down, Tensor lora_scale, Tensor lora_b, Tensor halt_w, Tensor halt_b,"
    " Tensor? norm_w"
)
_REST = "float threshold, float eps, int loop_dim"
_N_PARAMS = 8
_STATES = (torch.float32, torch.float64)


class LoopParams(NamedTuple):
    """The step's parameters. A, B, halt_w, norm_w (D), lora_down and lora_b (r, D), lora_scale (L, r), halt_b (1)."""

    A: torch.Tensor
    B: torch.Tensor
    lora_down: torch.Tensor
    lora_scale: torch.Tensor
    lora_b: torch.Tensor
    halt_w: torch.Tensor
    halt_b: torch.Tensor
    norm_w: torch.Tensor | None


def _fake(h, e, block_out, h_out, cum_p, *params_and_t):
    norm_w = params_and_t[_N_PARAMS - 1]
    following = e.new_empty(h.shape if norm_w is not None else (0,))
    return h.new_empty(h.shape), h_out.new_empty(h.shape), cum_p.new_empty(cum_p.shape), following


def _backward_fake(grad_h, grad_out, grad_p, grad_next, h, e, block_out, cum_p, *params_and_t):
    params = params_and_t[:_N_PARAMS]
    grads = [part.new_empty(part.shape) for part in (h, e, block_out, cum_p, *params[:-1])]
    norm_w = params[-1]
    last = norm_w.new_empty(norm_w.shape) if norm_w is not None else h.new_empty(0, dtype=wide(h.dtype))
    return *grads, last


def _inplace_fake(h, e, block_out, h_out, cum_p, *rest):
    return None


def _inplace_reference(h, e, block_out, h_out, cum_p, *rest):
    params, x_next, tail = rest[:_N_PARAMS], rest[_N_PARAMS], rest[_N_PARAMS + 1 :]
    reference.loop_step_(h, e, block_out, h_out, cum_p, *params, *tail, x_next=x_next)


def _functional_reference(*args):
    return tuple(part.contiguous() for part in reference.loop_step(*args))


def _backward_reference(*args):
    return tuple(part.contiguous() for part in reference.loop_step_backward(*args))


for _overload, _t in (("", "int t"), (".rows", "Tensor t")):
    define(
        f"loop_step{_overload}",
        f"({_STATE}, {_PARAMS}, {_t}, {_REST}) -> (Tensor, Tensor, Tensor, Tensor)",
        _fake,
        _functional_reference,
    )
    define(
        f"loop_step_backward{_overload}",
        f"(Tensor grad_h, Tensor grad_out, Tensor grad_p, Tensor grad_next, Tensor h, Tensor e, Tensor block_out,"
        f" Tensor cum_p, {_PARAMS}, {_t}, {_REST}) -> ({', '.join(['Tensor'] * 12)})",
        _backward_fake,
        _backward_reference,
    )
    define(
        f"loop_step_{_overload}",
        f"(Tensor(a!) h, Tensor e, Tensor block_out, Tensor(b!) h_out, Tensor(c!) cum_p, {_PARAMS},"
        f" Tensor(d!)? x_next, {_t}, {_REST}) -> ()",
        _inplace_fake,
        _inplace_reference,
    )


def _setup(ctx, inputs, output):
    h, e, block_out, _, cum_p, *params = inputs[: 5 + _N_PARAMS]
    t, *ctx.rest = inputs[5 + _N_PARAMS :]
    ctx.t = t if isinstance(t, int) else None
    ctx.save_for_backward(h, e, block_out, cum_p, *params, None if isinstance(t, int) else t)


def _autograd(ctx, grad_h, grad_out, grad_p, grad_next):
    *tensors, rows = ctx.saved_tensors
    op = torch.ops.openmythos.loop_step_backward
    op, t = (op.default, ctx.t) if rows is None else (op.rows, rows)
    d_h, d_e, d_block, d_cum, *d_params = op(grad_h, grad_out, grad_p, grad_next, *tensors, t, *ctx.rest)
    if tensors[-1] is None:
        d_params[-1] = None
    return d_h, d_e, d_block, grad_out, d_cum, *d_params, None, None, None, None


autograd("loop_step", _setup, _autograd)
autograd("loop_step.rows", _setup, _autograd)


def _agree(h, e, block_out, h_out, cum_p, params: LoopParams) -> bool:
    """Whether all shapes and the state's dtypes agree; without loops and texts, since it runs before every launch."""
    A, B, lora_down, lora_scale, lora_b, halt_w, halt_b, norm_w = params
    shape, low, scale, state = h.shape, lora_down.shape, lora_scale.shape, h_out.dtype
    if not (len(shape) == len(low) == len(scale) == 2):
        return False
    rows, width = shape
    row = (width,)
    return (
        e.shape == shape
        and block_out.shape == shape
        and h_out.shape == shape
        and cum_p.shape == (rows,)
        and state in _STATES
        and cum_p.dtype == state
        and low[1] == width
        and scale[1] == low[0]
        and lora_b.shape == low
        and A.shape == row
        and B.shape == row
        and halt_w.shape == row
        and halt_b.shape == (1,)
        and (norm_w is None or norm_w.shape == row)
    )


def _complain(h, e, block_out, h_out, cum_p, params: LoopParams) -> None:
    """Raise what is wrong where `_agree` says no."""
    if h.dim() != 2:
        raise ValueError(f"h {tuple(h.shape)}: must be (N, D)")
    for name, value in (("e", e), ("block_out", block_out), ("h_out", h_out)):
        if value.shape != h.shape:
            raise ValueError(f"{name} {tuple(value.shape)}: must have the shape of h, {tuple(h.shape)}")
    if cum_p.shape != h.shape[:1]:
        raise ValueError(f"cum_p {tuple(cum_p.shape)}: must be (N)=({h.shape[0]},)")
    if h_out.dtype not in _STATES or cum_p.dtype != h_out.dtype:
        raise ValueError(f"h_out {h_out.dtype}, cum_p {cum_p.dtype}: the ACT state must be float32 (or both float64)")
    width, rank = h.shape[1], params.lora_down.shape[0]
    shapes = {"A": (width,), "B": (width,), "lora_down": (rank, width), "lora_b": (rank, width), "halt_w": (width,)}
    shapes |= {"lora_scale": (params.lora_scale.shape[0], rank), "halt_b": (1,), "norm_w": (width,)}
    for name, shape in shapes.items():
        value = getattr(params, name)
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} {tuple(value.shape)}: must be {shape}")


def _check(h, e, block_out, h_out, cum_p, params: LoopParams, t: int | torch.Tensor) -> None:
    if not _agree(h, e, block_out, h_out, cum_p, params):
        _complain(h, e, block_out, h_out, cum_p, params)
    # isinstance(t, torch.Tensor) is slow where the answer is no
    if not isinstance(t, int) and isinstance(t, torch.Tensor):
        if t.shape != h.shape[:1] or t.is_floating_point():
            raise ValueError(f"t {tuple(t.shape)} {t.dtype}: must be integers (N)=({h.shape[0]},)")
    elif t < 0:
        raise ValueError(f"t={t}: must be at least 0")


@accepts_backend
def loop_step(
    h: torch.Tensor,
    e: torch.Tensor,
    block_out: torch.Tensor,
    h_out: torch.Tensor,
    cum_p: torch.Tensor,
    params: LoopParams,
    t: int | torch.Tensor,
    *,
    threshold: float,
    loop_dim: int,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step of the recurrence: new h, h_out, cum_p and the next block input.

    x = block_out + ((block_out lora_down^T) * lora_scale[min(t, L-1)]) lora_b; h' = A h + B e + x;
    p = sigmoid(h' . halt_w + halt_b); while cum_p < threshold a row adds weight * h' to h_out, where the
    weight is p, or what is left of 1 on the step that crosses the threshold; cum_p += p;
    next = rms_norm(h' + emb(t + 1) + e) * norm_w, with emb over the first `loop_dim` channels.

    h, e, block_out (N, D) in any dtype, h_out (N, D) and cum_p (N) float32 (or both float64), t the loop
    index, an int or integers (N). The next input has e's dtype; without norm_w (the last loop) it is empty.
    ACT: Graves, arXiv 1603.08983.

    Raises:
        ValueError: when shapes or the state's dtype do not agree, or t is negative.
    """
    _check(h, e, block_out, h_out, cum_p, params, t)
    args = (h, e, block_out, h_out, cum_p, *params, t, threshold, eps, loop_dim)
    if device := direct(h):
        return dispatch.select("loop_step", device, *args)(*args)
    op = torch.ops.openmythos.loop_step
    return (op.rows if isinstance(t, torch.Tensor) else op.default)(*args)


@accepts_backend
def loop_step_(
    h: torch.Tensor,
    e: torch.Tensor,
    block_out: torch.Tensor,
    h_out: torch.Tensor,
    cum_p: torch.Tensor,
    params: LoopParams,
    t: int | torch.Tensor,
    *,
    x_next: torch.Tensor | None,
    threshold: float,
    loop_dim: int,
    eps: float = 1e-6,
) -> None:
    """`loop_step` that updates h, h_out and cum_p in place and writes the next block input into `x_next`.

    It has no autograd. x_next (N, D) in any dtype, or None on the last loop; it may be block_out itself.

    Raises:
        ValueError: as loop_step, and when exactly one of norm_w and x_next is given.
    """
    _check(h, e, block_out, h_out, cum_p, params, t)
    if (x_next is None) != (params.norm_w is None):
        raise ValueError("x_next and norm_w: give both, or neither on the last loop")
    if x_next is not None and x_next.shape != h.shape:
        raise ValueError(f"x_next {tuple(x_next.shape)}: must have the shape of h, {tuple(h.shape)}")
    args = (h, e, block_out, h_out, cum_p, *params, x_next, t, threshold, eps, loop_dim)
    if device := direct(h):
        dispatch.select("loop_step_", device, *args)(*args)
        return
    op = torch.ops.openmythos.loop_step_
    (op.rows if isinstance(t, torch.Tensor) else op.default)(*args)
