"""Registers kernels that take the arguments of a call one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openmythos.dispatch import register
from openmythos.ops.core import flat


def _arguments(op: str, call: Any) -> tuple[Any, ...]:
    if op.startswith("loop_step"):
        fields = call._asdict()
        t, t_rows, x_next = fields.pop("t"), fields.pop("t_rows"), fields.pop("x_next", None)
        rest = [fields.pop(name) for name in ("threshold", "eps", "loop_dim")]
        middle = [x_next] if op == "loop_step_" else []
        return (*fields.values(), *middle, t if t_rows is None else t_rows, *rest)
    if op in ("mla_absorbed", "mla_decompressed"):
        return (*call, op.removeprefix("mla_"))
    if op == "moe_experts_backward":
        return (call.grad, call.x, call.ids, call.weights, call.experts.gate_up, call.experts.down, call.hidden)
    return flat(call)


def register_flat(op: str, backend: str, run: Callable, *, device: str, supports: Callable) -> None:
    """`dispatch.register` for a `run` and a `supports` that take arguments one by one."""
    register(
        op,
        backend,
        lambda call: run(*_arguments(op, call)),
        device=device,
        supports=lambda call: supports(*_arguments(op, call)),
    )


def register_experts(
    backend: str, routed: Callable, routed_supports: Callable, whole: Callable, whole_supports: Callable, device: str
) -> None:
    """moe_experts, by `whole` where there are shared experts."""
    register(
        "moe_experts",
        backend,
        lambda call: whole(*flat(call), call.experts.shared) if call.experts.shared else routed(*flat(call)),
        device=device,
        supports=lambda call: (
            whole_supports(*flat(call), call.experts.shared) if call.experts.shared else routed_supports(*flat(call))
        ),
    )
