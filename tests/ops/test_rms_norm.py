"""rms_norm and rms_norm_add: every backend, storage dtype, odd width, mixture of dtypes and stride."""

from __future__ import annotations

import pytest
import torch

from openmythos import ops, reference
from tests.backends import Entry, each_entry
from tests.cases import check_entry, check_repeatable, each_dtype, randn, strided
from tests.tolerances import assert_close

EPS = 1e-6
SHAPES = pytest.mark.parametrize(
    "shape", [(1, 1), (2, 97), (63, 47), (129, 131), (3, 5, 256), (0, 97), (97,)], ids=str
)


@each_entry("rms_norm")
@each_dtype
@SHAPES
def test_rms_norm(entry: Entry, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = randn(*shape, dtype=dtype, scale=3), 1 + randn(shape[-1], dtype=dtype, scale=0.3)
    check_entry(entry, reference.rms_norm, (x, weight, EPS, None), dtype)


@each_entry("rms_norm_add")
@each_dtype
@SHAPES
def test_rms_norm_add(entry: Entry, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, residual = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype)
    weight = 1 + randn(shape[-1], dtype=dtype, scale=0.3)
    check_entry(entry, reference.rms_norm_add, (x, residual, weight, EPS, None), dtype)


MIXED = [
    (torch.float32, torch.bfloat16, None),
    (torch.float32, torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32, None),
    (torch.bfloat16, torch.float32, torch.bfloat16),
    (torch.float32, torch.float16, torch.float16),
    (torch.float16, torch.float32, torch.float32),
]


@each_entry("rms_norm")
@pytest.mark.parametrize(("x_dtype", "weight_dtype", "out_dtype"), MIXED, ids=str)
def test_mixed_dtypes(
    entry: Entry, x_dtype: torch.dtype, weight_dtype: torch.dtype, out_dtype: torch.dtype | None
) -> None:
    x, weight = randn(5, 97, dtype=x_dtype), 1 + randn(97, dtype=weight_dtype, scale=0.3)
    (out,) = check_entry(entry, reference.rms_norm, (x, weight, EPS, out_dtype), out_dtype or torch.float32)
    assert out.dtype == (out_dtype or torch.float32)


@each_entry("rms_norm_add")
@pytest.mark.parametrize(
    ("x_dtype", "residual_dtype"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
)
def test_mixed_residual(entry: Entry, x_dtype: torch.dtype, residual_dtype: torch.dtype) -> None:
    x, residual, weight = randn(7, 131, dtype=x_dtype), randn(7, 131, dtype=residual_dtype), randn(131)
    found = check_entry(entry, reference.rms_norm_add, (x, residual, weight, EPS, torch.bfloat16), torch.bfloat16)
    assert [part.dtype for part in found] == [torch.bfloat16, torch.float32]


@each_entry("rms_norm")
@each_dtype
def test_strided_rows(entry: Entry, dtype: torch.dtype) -> None:
    check_entry(
        entry, reference.rms_norm, (strided(randn(63, 97, dtype=dtype)), randn(97, dtype=dtype), EPS, None), dtype
    )


@each_entry("rms_norm")
def test_transposed_rows(entry: Entry) -> None:
    """A last dimension that is not contiguous is served or refused, never misread."""
    check_entry(entry, reference.rms_norm, (randn(47, 5).T, randn(47), EPS, None), torch.float32)


@each_entry("rms_norm")
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e4, 1e15])
def test_extreme_scales(entry: Entry, scale: float) -> None:
    check_entry(entry, reference.rms_norm, (randn(4, 97, scale=scale), randn(97), EPS, None), torch.float32)


@each_entry("rms_norm")
def test_float16_squares_do_not_overflow(entry: Entry) -> None:
    x = randn(4, 97, dtype=torch.float16, scale=1e4)
    check_entry(entry, reference.rms_norm, (x, randn(97, dtype=torch.float16), EPS, None), torch.float16)


@each_entry("rms_norm")
def test_nan_and_inf_stay_in_their_row(entry: Entry) -> None:
    x = randn(4, 97)
    x[1, 5], x[2, 96] = float("nan"), float("inf")
    out = entry.call(x, randn(97), EPS, None)
    assert out[0].isfinite().all()
    assert out[3].isfinite().all()
    assert out[1].isnan().all()
    assert out[2, 96].isnan()


@each_entry("rms_norm_add")
@each_dtype
def test_repeatable(entry: Entry, dtype: torch.dtype) -> None:
    args = (randn(129, 131, dtype=dtype), randn(129, 131, dtype=dtype), randn(131, dtype=dtype), EPS, None)
    check_repeatable(entry, args)


@each_entry("rms_norm")
@each_dtype
def test_a_row_alone_equals_the_row_in_a_batch(entry: Entry, dtype: torch.dtype) -> None:
    x, weight = randn(63, 97, dtype=dtype), randn(97, dtype=dtype)
    both = entry.call(x, weight, EPS, None)
    for index in (0, 31, 62):
        assert torch.equal(entry.call(x[index : index + 1], weight, EPS, None), both[index : index + 1])


@each_entry("rms_norm_backward")
@each_dtype
@SHAPES
def test_backward(entry: Entry, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = randn(*shape, dtype=dtype, scale=3), 1 + randn(shape[-1], dtype=dtype, scale=0.3)
    # a single column is always normalised to 1, except for eps: with a tiny eps its gradient is only rounding
    eps = 0.5 if shape[-1] == 1 else EPS
    check_entry(entry, reference.rms_norm_backward, (randn(*shape, dtype=dtype), x, weight, eps), dtype)


@each_entry("rms_norm_backward")
def test_backward_of_mixed_dtypes_and_strided_rows(entry: Entry) -> None:
    x, weight = strided(randn(63, 97)), 1 + randn(97, dtype=torch.bfloat16, scale=0.3)
    grad = strided(randn(63, 97, dtype=torch.bfloat16))
    found = check_entry(entry, reference.rms_norm_backward, (grad, x, weight, EPS), torch.bfloat16)
    assert [part.dtype for part in found] == [torch.float32, torch.bfloat16]


@each_entry("rms_norm_backward")
@each_dtype
def test_backward_is_repeatable(entry: Entry, dtype: torch.dtype) -> None:
    args = (randn(129, 131, dtype=dtype), randn(129, 131, dtype=dtype), randn(131, dtype=dtype), EPS)
    check_repeatable(entry, args)


@each_entry("rms_norm_backward")
@pytest.mark.slow
def test_backward_of_wide_rows(entry: Entry) -> None:
    """Rows that do not fit the Triton kernel's registers."""
    args = (randn(5, 8201), randn(5, 8201), randn(8201), EPS)
    check_entry(entry, reference.rms_norm_backward, args, torch.float32)


@each_dtype
def test_gradients(dtype: torch.dtype) -> None:
    inputs = [randn(7, 97, dtype=dtype), randn(7, 97, dtype=dtype), randn(97, dtype=dtype)]
    outer = randn(7, 97, dtype=dtype), randn(7, 97, dtype=dtype)
    found = []
    for cast, function in (
        (dtype, ops.rms_norm_add),
        (torch.float64, reference.rms_norm_add),
        (dtype, reference.rms_norm_add),
    ):
        leaves = [part.to(cast).requires_grad_() for part in inputs]
        normed, total = function(*leaves, EPS)
        loss = (normed * outer[0].to(cast)).sum() + (total * outer[1].to(cast)).sum()
        found.append(torch.autograd.grad(loss, leaves))
    for name, mine, true, plain in zip(("x", "residual", "weight"), *found, strict=True):
        assert_close(f"gradient of {name}", mine, true, plain, dtype)
