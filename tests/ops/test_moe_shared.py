"""Routed and shared experts in one call: every backend, shared widths of one expert and of several, odd sizes."""

from __future__ import annotations

import pytest
import torch

from openmythos import ops
from tests.backends import Entry, each_entry
from tests.cases import check_entry, check_repeatable, each_dtype, randn, strided
from tests.cases.moe import experts
from tests.cases.shared_experts import ROUTED, routed_and_shared, triples


class _Flat:
    """An entry of moe_experts, called with the shared matrices as flat arguments."""

    def __init__(self, entry: Entry) -> None:
        self.op, self.backend, self.entry = entry.op, entry.backend, entry

    def call(self, *args: torch.Tensor) -> torch.Tensor:
        return self.entry.call(*args[:ROUTED], triples(args))


def public(*args: torch.Tensor) -> torch.Tensor:
    """The public function of the same arguments."""
    x, ids, weights, *stacks = args[:ROUTED]
    return ops.moe_experts(x, ids, weights, ops.StackedExperts(*stacks, tuple(triples(args))))


def _inputs(n: int, d: int, i: int, widths: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    args = experts(n, d, i, 7, 3, dtype)
    for width in widths:
        args += [randn(width, d, dtype=dtype, scale=d**-0.5) for _ in range(2)]
        args.append(randn(d, width, dtype=dtype, scale=width**-0.5))
    return args


@each_entry("moe_experts")
@each_dtype
@pytest.mark.parametrize("widths", [(47,), (94, 94), (47, 141, 94)], ids=str)
@pytest.mark.parametrize("n", [0, 1, 2, 16, 17, 63, 129])
def test_routed_and_shared(entry: Entry, dtype: torch.dtype, n: int, widths: tuple[int, ...]) -> None:
    check_entry(_Flat(entry), routed_and_shared, _inputs(n, 97, 47, widths, dtype), dtype)


@each_entry("moe_experts")
@each_dtype
def test_strided(entry: Entry, dtype: torch.dtype) -> None:
    x, ids, weights, *matrices = _inputs(19, 97, 48, (96,), dtype)
    check_entry(_Flat(entry), routed_and_shared, [strided(x), ids, strided(weights), *map(strided, matrices)], dtype)


@each_entry("moe_experts")
@each_dtype
@pytest.mark.parametrize("n", [1, 33, 300])
def test_repeatable(entry: Entry, dtype: torch.dtype, n: int) -> None:
    check_repeatable(_Flat(entry), _inputs(n, 131, 48, (192, 192), dtype))


def test_a_width_that_is_no_multiple_is_served_apart() -> None:
    args = _inputs(9, 97, 47, (60,))
    with torch.no_grad():
        found = public(*args)
    torch.testing.assert_close(found, routed_and_shared(*args), rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_matrix() -> None:
    args = [part.double() if part.is_floating_point() else part for part in _inputs(9, 13, 7, (14, 7))]
    for part in args:
        part.requires_grad_(part.is_floating_point())
    grads = []
    for function in (public, routed_and_shared):
        floating = [part for part in args if part.requires_grad]
        grads.append(torch.autograd.grad(function(*args).sin().sum(), floating))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
