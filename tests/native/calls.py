"""The C++ backend's functions, called with the flat arguments of their ops."""

from __future__ import annotations

from collections.abc import Callable

from openmythos import dispatch
from openmythos.backends import cpp


def _by_arguments(op: str) -> Callable:
    build, run = dispatch.builder(op), getattr(cpp, op)
    return lambda *args: run(build(*args))


loop_step = _by_arguments("loop_step")
loop_step_ = _by_arguments("loop_step_")
mla_absorbed = _by_arguments("mla_absorbed")
mla_decompressed = _by_arguments("mla_decompressed")
moe_experts = _by_arguments("moe_experts")
moe_route = _by_arguments("moe_route")
rms_norm = _by_arguments("rms_norm")
rms_norm_add = _by_arguments("rms_norm_add")


def reason(op: str, *args: object) -> str | None:
    """Why the backend does not serve these arguments of the op on a GPU, or None."""
    entry = next(entry for entry in dispatch.entries(op, "cuda") if entry.name == "cpp")
    return entry.supports(dispatch.builder(op)(*args))
