"""linear and swiglu: every backend, storage dtype, odd size and stride."""

from __future__ import annotations

import pytest
import torch

from openmythos import ops, reference
from tests.backends import Entry, each_entry
from tests.cases import check_entry, check_repeatable, each_dtype, randn, strided

SIZES = [(1, 1, 1), (1, 97, 131), (2, 47, 97), (7, 2, 63), (63, 131, 47), (129, 64, 129), (0, 97, 47), (5, 2048, 3)]
SWIGLU_SIZES = [(1, 1, 1, 1), (1, 97, 131, 97), (2, 47, 97, 53), (63, 131, 47, 131), (129, 64, 129, 64), (0, 9, 7, 9)]


@each_entry("linear")
@each_dtype
@pytest.mark.parametrize(("n", "k", "o"), SIZES)
def test_linear(entry: Entry, dtype: torch.dtype, n: int, k: int, o: int) -> None:
    check_entry(entry, reference.linear, (randn(n, k, dtype=dtype), randn(o, k, dtype=dtype, scale=k**-0.5)), dtype)


@each_entry("linear")
@each_dtype
@pytest.mark.parametrize("shape", [(3, 5, 97), (97,), (2, 0, 97), (1, 1, 97)], ids=str)
def test_linear_keeps_leading_dimensions(entry: Entry, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    check_entry(entry, reference.linear, (randn(*shape, dtype=dtype), randn(47, 97, dtype=dtype)), dtype)


@each_entry("linear")
@each_dtype
def test_linear_strided(entry: Entry, dtype: torch.dtype) -> None:
    args = strided(randn(9, 97, dtype=dtype)), strided(randn(47, 97, dtype=dtype))
    check_entry(entry, reference.linear, args, dtype)


@each_entry("linear")
@each_dtype
def test_linear_of_a_transposed_view(entry: Entry, dtype: torch.dtype) -> None:
    args = randn(3, 4, 97, dtype=dtype).transpose(0, 1), randn(97, 47, dtype=dtype).T
    check_entry(entry, reference.linear, args, dtype)


@each_entry("swiglu")
@each_dtype
@pytest.mark.parametrize(("n", "d", "i", "o"), SWIGLU_SIZES)
def test_swiglu(entry: Entry, dtype: torch.dtype, n: int, d: int, i: int, o: int) -> None:
    gate, up = (randn(i, d, dtype=dtype, scale=d**-0.5) for _ in range(2))
    args = (randn(n, d, dtype=dtype), gate, up, randn(o, i, dtype=dtype, scale=i**-0.5))
    check_entry(entry, reference.swiglu, args, dtype)


@each_entry("swiglu")
@each_dtype
def test_swiglu_strided(entry: Entry, dtype: torch.dtype) -> None:
    """Gate and up are halves of one stacked tensor, as the routed experts keep them."""
    stack = randn(2, 131, 97, dtype=dtype, scale=0.1)
    down = strided(randn(97, 131, dtype=dtype, scale=0.1))
    check_entry(entry, reference.swiglu, (strided(randn(9, 97, dtype=dtype)), stack[0], stack[1], down), dtype)


@each_entry("swiglu")
def test_swiglu_of_large_gates(entry: Entry) -> None:
    """silu saturates instead of overflowing."""
    args = (randn(3, 97, scale=100), randn(47, 97), randn(47, 97), randn(97, 47))
    check_entry(entry, reference.swiglu, args, torch.float32)


@each_entry("linear")
@each_dtype
def test_linear_repeatable(entry: Entry, dtype: torch.dtype) -> None:
    for n in (1, 63):
        check_repeatable(entry, (randn(n, 131, dtype=dtype), randn(997, 131, dtype=dtype)))


@each_entry("swiglu")
@each_dtype
def test_swiglu_repeatable(entry: Entry, dtype: torch.dtype) -> None:
    for n in (1, 63):
        gate, up = randn(301, 131, dtype=dtype), randn(301, 131, dtype=dtype)
        check_repeatable(entry, (randn(n, 131, dtype=dtype), gate, up, randn(131, 301, dtype=dtype)))


@pytest.mark.parametrize("name", ["linear", "swiglu"])
def test_public_function_with_and_without_gradients(name: str) -> None:
    shapes = [(5, 97), (47, 97)] if name == "linear" else [(5, 97), (47, 97), (47, 97), (97, 47)]
    args = [randn(*shape, scale=0.2).requires_grad_() for shape in shapes]
    recorded = getattr(ops, name)(*args)
    with torch.no_grad():
        torch.testing.assert_close(getattr(ops, name)(*args), recorded.detach(), rtol=1e-5, atol=1e-5)
    assert all(part is not None for part in torch.autograd.grad(recorded.sum(), args))
