"""`launch`, which starts every kernel, and the target that it starts for.

A launcher allocates its outputs and calls `launch`. By default that runs the kernel on the current device; inside
`executing(...)` it passes the launch to ahead-of-time compilation or to an emulator of the target.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import triton

# before any kernel is interpreted
if triton.knobs.runtime.interpret:
    from openmythos.triton_kernels import interpreter

    interpreter.correct()


class Target(NamedTuple):
    """What a launcher's decisions depend on: the architecture ("sm90", "gfx1151"), the number of SMs or CUs."""

    arch: str
    processors: int

    @property
    def amd(self) -> bool:
        """Whether this is an AMD GPU."""
        return self.arch.startswith("gfx")


TARGETS = {
    target.arch: target
    for target in (Target("sm80", 108), Target("sm90", 132), Target("sm100", 148), Target("gfx1151", 40))
}


class Launch(NamedTuple):
    """One kernel start: `args` are the kernel's run-time arguments in order, `options` num_warps and the like."""

    kernel: triton.JITFunction
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constexprs: dict[str, Any]
    options: dict[str, Any]


class _Executor(NamedTuple):
    target: Target
    run: Callable[[Launch], None]


_executor: ContextVar[_Executor | None] = ContextVar("openmythos_triton_executor", default=None)


@contextmanager
def executing(target: Target, run: Callable[[Launch], None]) -> Iterator[None]:
    """Pass every launch inside the block to `run`, as if the current device were `target`."""
    token = _executor.set(_Executor(target, run))
    try:
        yield
    finally:
        _executor.reset(token)


@functools.cache
def _device_target(index: int) -> Target:
    properties = torch.cuda.get_device_properties(index)
    nvidia = f"sm{properties.major}{properties.minor}"
    arch = properties.gcnArchName.split(":")[0] if torch.version.hip else nvidia
    return Target(arch, properties.multi_processor_count)


def target_of(x: torch.Tensor) -> Target:
    """The target that kernels on x's device are launched for; the interpreter on the CPU uses sm90's configs."""
    executor = _executor.get()
    if executor is not None:
        return executor.target
    return _device_target(x.device.index) if x.is_cuda else TARGETS["sm90"]


def unsupported(x: torch.Tensor) -> str | None:
    """The reason why kernels cannot run on x's device, or None."""
    if not x.is_cuda and _executor.get() is None and not triton.knobs.runtime.interpret:
        return f"Triton's kernels run on GPUs, or on the CPU with TRITON_INTERPRET=1, not on {x.device}"
    arch = target_of(x).arch
    if arch.startswith("gfx") and not arch.startswith(("gfx11", "gfx12")):
        return f"{arch}: the kernels are for waves of 32 lanes, gfx11 and gfx12"
    if arch.startswith("sm") and int(arch[2:]) < 80:
        return f"{arch}: the kernels need sm80 or newer"
    return None


def launch(
    kernel: triton.JITFunction, grid: tuple[int, ...], *args: Any, options: dict[str, Any], **constexprs: Any
) -> None:
    """Start `kernel` over `grid`; nothing starts for an empty grid. The device is that of the first tensor."""
    if 0 in grid:
        return
    executor = _executor.get()
    if executor is not None:
        executor.run(Launch(kernel, grid, args, constexprs, options))
        return
    first = next(arg for arg in args if isinstance(arg, torch.Tensor))
    with torch.cuda.device_of(first):
        kernel[grid](*args, **constexprs, **options)
