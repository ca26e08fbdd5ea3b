"""loop_step: LoRA delta, LTI injection, ACT halting and the next loop's input norm in one pass over the rows."""

from __future__ import annotations

from typing import NamedTuple

import torch

from openmythos import dispatch
from openmythos.ops.core import accepts_backend, autograd, contiguous, define, direct, gradients
from openmythos.ops.loop_step import reference
from openmythos.ops.precision import wide

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

    def contiguous(self) -> LoopParams:
        """The same parameters, each contiguous, which is what kernels read."""
        for part in self:
            if part is not None and not part.is_contiguous():
                return LoopParams(*(None if part is None else part.contiguous() for part in self))
        return self


def _params(call: LoopStep | LoopStepInPlace | LoopStepBackward) -> LoopParams:
    return LoopParams(*(getattr(call, name) for name in LoopParams._fields))


def param_shapes(width: int, rank: int, loops: int) -> LoopParams:
    """The shape of every parameter: rows of `width` columns, LoRA matrices of `rank`, a scale for `loops` loops."""
    vector, low = (width,), (rank, width)
    return LoopParams(vector, vector, low, (loops, rank), low, vector, (1,), vector)


class LoopStep(NamedTuple):
    """h, e, block_out and h_out (N, D), cum_p (N), the fields of LoopParams, and the rows' loop.

    `t_rows` (N) int32 gives each row its own loop; without it every row is at loop `t`.
    """

    h: torch.Tensor
    e: torch.Tensor
    block_out: torch.Tensor
    h_out: torch.Tensor
    cum_p: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    lora_down: torch.Tensor
    lora_scale: torch.Tensor
    lora_b: torch.Tensor
    halt_w: torch.Tensor
    halt_b: torch.Tensor
    norm_w: torch.Tensor | None
    t: int
    t_rows: torch.Tensor | None
    threshold: float
    eps: float
    loop_dim: int

    params = property(_params, doc="The fields of LoopParams.")


class LoopStepInPlace(NamedTuple):
    """`LoopStep` that updates h, h_out and cum_p and writes the next block input to x_next (N, D)."""

    h: torch.Tensor
    e: torch.Tensor
    block_out: torch.Tensor
    h_out: torch.Tensor
    cum_p: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    lora_down: torch.Tensor
    lora_scale: torch.Tensor
    lora_b: torch.Tensor
    halt_w: torch.Tensor
    halt_b: torch.Tensor
    norm_w: torch.Tensor | None
    t: int
    t_rows: torch.Tensor | None
    threshold: float
    eps: float
    loop_dim: int
    x_next: torch.Tensor | None

    params = property(_params, doc="The fields of LoopParams.")


class LoopStepBackward(NamedTuple):
    """The gradients of the four results, and the step's arguments without h_out, whose gradient is grad_out."""

    grad_h: torch.Tensor
    grad_out: torch.Tensor
    grad_p: torch.Tensor
    grad_next: torch.Tensor
    h: torch.Tensor
    e: torch.Tensor
    block_out: torch.Tensor
    cum_p: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    lora_down: torch.Tensor
    lora_scale: torch.Tensor
    lora_b: torch.Tensor
    halt_w: torch.Tensor
    halt_b: torch.Tensor
    norm_w: torch.Tensor | None
    t: int
    t_rows: torch.Tensor | None
    threshold: float
    eps: float
    loop_dim: int

    params = property(_params, doc="The fields of LoopParams.")


# The fields that loop_step_backward returns gradients of, in this order.
DIFFERENTIATED = ("h", "e", "block_out", "cum_p", *LoopParams._fields)
_SETTINGS = ("t", "threshold", "eps", "loop_dim")


def _fake(call: LoopStep) -> tuple[torch.Tensor, ...]:
    following = call.e.new_empty(call.h.shape if call.norm_w is not None else (0,))
    return (
        call.h.new_empty(call.h.shape),
        call.h_out.new_empty(call.h.shape),
        call.cum_p.new_empty(call.cum_p.shape),
        following,
    )


def _backward_fake(call: LoopStepBackward) -> tuple[torch.Tensor, ...]:
    inputs = (getattr(call, name) for name in DIFFERENTIATED)
    absent = call.h.new_empty(0, dtype=wide(call.h.dtype))
    return tuple(absent if part is None else part.new_empty(part.shape) for part in inputs)


def _reference_in_place(call: LoopStepInPlace) -> None:
    step = LoopStep(*(getattr(call, name) for name in LoopStep._fields))
    results = reference.loop_step(*step)
    for target, value in zip((call.h, call.h_out, call.cum_p, call.x_next), results, strict=True):
        if target is not None:
            target.copy_(value)


define(
    "loop_step",
    LoopStep,
    "(Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    reference=lambda call: contiguous(reference.loop_step(*call)),
)
define(
    "loop_step_",
    LoopStepInPlace,
    "()",
    fake=lambda call: None,
    reference=_reference_in_place,
    mutates=("h", "h_out", "cum_p", "x_next"),
)
define(
    "loop_step_backward",
    LoopStepBackward,
    f"({', '.join(['Tensor'] * len(DIFFERENTIATED))})",
    fake=_backward_fake,
    reference=lambda call: contiguous(reference.loop_step_backward(*call)),
)


def _setup(ctx, inputs, output):
    call = LoopStep(*inputs)
    ctx.settings = {name: getattr(call, name) for name in _SETTINGS}
    ctx.save_for_backward(*(getattr(call, name) for name in DIFFERENTIATED), call.t_rows)


def _autograd(ctx, grad_h, grad_out, grad_p, grad_next):
    *tensors, t_rows = ctx.saved_tensors
    saved = dict(zip(DIFFERENTIATED, tensors, strict=True))
    outputs = {"grad_h": grad_h, "grad_out": grad_out, "grad_p": grad_p, "grad_next": grad_next}
    call = LoopStepBackward(**outputs, **saved, t_rows=t_rows, **ctx.settings)
    found = dict(zip(DIFFERENTIATED, torch.ops.openmythos.loop_step_backward(*call), strict=True))
    if call.norm_w is None:
        del found["norm_w"]
    return gradients(LoopStep, h_out=grad_out, **found)


autograd("loop_step", _setup, _autograd)


def _check(call: LoopStep | LoopStepInPlace) -> None:
    """Check shapes and the state's dtypes, for backends that do not validate calls themselves."""
    params = call.params
    shape = call.h.shape
    if len(shape) != 2:
        raise ValueError(f"h {tuple(shape)}: must be (N, D)")
    rows, width = shape
    for name, value in (("e", call.e), ("block_out", call.block_out), ("h_out", call.h_out)):
        if value.shape != shape:
            raise ValueError(f"{name} {tuple(value.shape)}: must have the shape of h, {tuple(shape)}")
    if call.cum_p.shape != (rows,):
        raise ValueError(f"cum_p {tuple(call.cum_p.shape)}: must be (N)=({rows},)")
    state = call.h_out.dtype
    if state not in _STATES or call.cum_p.dtype != state:
        raise ValueError(f"h_out {state}, cum_p {call.cum_p.dtype}: the ACT state must be float32 (or both float64)")
    shapes = param_shapes(width, params.lora_down.shape[0], params.lora_scale.shape[0])
    for name, value, expected in zip(LoopParams._fields, params, shapes, strict=True):
        if value is not None and value.shape != expected:
            raise ValueError(f"{name} {tuple(value.shape)}: must be {expected}")
    if call.t_rows is not None:
        if call.t_rows.shape != (rows,) or call.t_rows.is_floating_point():
            raise ValueError(f"t {tuple(call.t_rows.shape)} {call.t_rows.dtype}: must be integers (N)=({rows},)")
    elif call.t < 0:
        raise ValueError(f"t={call.t}: must be at least 0")


def _split_depth(t: int | torch.Tensor) -> tuple[int, torch.Tensor | None]:
    """(t, t_rows) of a call. `isinstance(t, int)` comes first: a failing isinstance(t, torch.Tensor) is slow."""
    if isinstance(t, int) or not isinstance(t, torch.Tensor):
        return t, None
    return 0, t if t.is_floating_point() else t.to(torch.int32).contiguous()


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
    params = params.contiguous()
    call = LoopStep(h, e, block_out, h_out, cum_p, *params, *_split_depth(t), threshold, eps, loop_dim)
    if device := direct(h):
        return dispatch.select("loop_step", device, call, _check)(call)
    _check(call)
    return torch.ops.openmythos.loop_step(*call)


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
    params = params.contiguous()
    call = LoopStepInPlace(h, e, block_out, h_out, cum_p, *params, *_split_depth(t), threshold, eps, loop_dim, x_next)
    if (x_next is None) != (call.norm_w is None):
        raise ValueError("x_next and norm_w: give both, or neither on the last loop")
    if x_next is not None and x_next.shape != h.shape:
        raise ValueError(f"x_next {tuple(x_next.shape)}: must have the shape of h, {tuple(h.shape)}")
    if device := direct(h):
        dispatch.select("loop_step_", device, call, _check)(call)
        return
    _check(call)
    torch.ops.openmythos.loop_step_(*call)
