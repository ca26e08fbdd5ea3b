"""Inputs of every op, the float64 result of the rounded inputs, and checks that every op has to pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager

import pytest
import torch

from tests.backends import Entry
from tests.tolerances import LIMITS, assert_close, gradient_limits

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def randn(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
    """Normal random values rounded to `dtype`."""
    return (torch.randn(shape) * scale).to(dtype)


def strided(x: torch.Tensor) -> torch.Tensor:
    """The same values as a view of a wider buffer whose other elements are NaN: only the last stride is 1."""
    buffer = torch.full((*x.shape[:-1], x.shape[-1] + 3), float("nan"), dtype=x.dtype)
    view = buffer[..., 1 : 1 + x.shape[-1]]
    view.copy_(x)
    return view


def doubled(args: Sequence[object]) -> list[object]:
    """The arguments with every floating tensor in float64."""
    return [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in args]


def listed(outputs: object) -> list[torch.Tensor]:
    """The outputs of an op as a list."""
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def check_outputs(
    name: str, found: Sequence[torch.Tensor], reference: Callable, args: Sequence[object], dtype: torch.dtype
) -> list[torch.Tensor]:
    """Check the outputs of an op against the tolerances; integer outputs must be equal. Returns the float64 result.

    An op with "backward" in its name returns gradients, to which the limits for few elements apply.
    """
    plain, truth = listed(reference(*args)), listed(reference(*doubled(args)))
    assert len(found) == len(plain), name
    for index, (mine, other, true) in enumerate(zip(found, plain, truth, strict=True)):
        part = f"{name} output {index}"
        assert mine.shape == other.shape, part
        assert mine.dtype == other.dtype, part
        if not mine.is_floating_point():
            assert torch.equal(mine, other), part
        else:
            limits = gradient_limits(mine) if "backward" in name else LIMITS
            assert_close(part, mine, true, other, dtype, limits=limits)
    return truth


def check_entry(entry: Entry, reference: Callable, args: Sequence[object], dtype: torch.dtype) -> list[torch.Tensor]:
    """Check every output of a backend against the tolerances. Returns the outputs."""
    found = listed(entry.call(*args))
    check_outputs(f"{entry.op} of {entry.backend}", found, reference, args, dtype)
    return found


@contextmanager
def threads(count: int):
    """Run the block with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_repeatable(entry: Entry, args: Sequence[object]) -> None:
    """Check that two runs are bitwise equal; for our own kernels also with another number of threads."""
    first = listed(entry.call(*args))
    again = listed(entry.call(*args))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), "two runs differ"
    if entry.backend in ("torch", "reference"):
        return
    with threads(2):
        other = listed(entry.call(*args))
    assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True)), "one thread and two differ"
