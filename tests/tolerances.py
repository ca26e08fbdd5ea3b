"""All tolerances: how far a result may be from the exact one.

The exact result is the float64 result of the inputs as rounded to the storage dtype. The error may be at most twice
that of plain torch in that dtype, plus a small floor, and never above a cap. Ids, masks and moved data are exact and
are compared with `torch.equal`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

FACTOR = 2.0
# One element is a noisier estimate of the rounding error than a norm over all of them.
MAX_FACTOR = 4.0


class Limit(NamedTuple):
    """Relative errors of one dtype: `floor` is always allowed, `cap` never exceeded; `max_cap` bounds one element."""

    floor: float
    cap: float
    max_cap: float


LIMITS = {
    torch.float64: Limit(1e-13, 1e-11, 1e-10),
    torch.float32: Limit(3e-7, 1e-5, 5e-5),
    torch.float16: Limit(2e-4, 4e-3, 2e-2),
    torch.bfloat16: Limit(1.5e-3, 3e-2, 1e-1),
}

# A whole model, whose errors accumulate over layers and loops, against the float64 result of its rounded weights.
MODEL_LIMITS = {
    torch.float32: Limit(1e-6, 1e-4, 1e-3),
    torch.float16: Limit(1e-3, 5e-2, 2e-1),
    torch.bfloat16: Limit(5e-3, 1e-1, 4e-1),
}

# Gradients of one or a few elements (log_dt, a bias) are sums that cancel, so that a single rounding weighs more.
GRADIENT_LIMITS = {torch.float32: Limit(5e-6, 1e-4, 1e-3)}
FEW_NUMBERS = 8
# float16 products on the CPU accumulate in float16 for some operand layouts, so that equal formulas differ by more
# than rounding.
FLOAT16_PRODUCTS = {**LIMITS, torch.float16: Limit(1e-3, 4e-3, 2e-2)}

# Upstream computes rotary and loop embeddings in float32 even in a float64 model.
ORACLE_FLOAT64 = 2e-6
# Error under torch.autocast(bfloat16), against upstream's own under autocast.
AUTOCAST_FACTOR = 1.25
# A position this close to the threshold may halt at another step because of rounding.
HALTING_MARGIN = 1e-5


class Errors(NamedTuple):
    """Relative errors of a result: in the Frobenius norm, and of the worst element over max|exact|."""

    frobenius: float
    largest: float


def errors(actual: torch.Tensor, exact: torch.Tensor) -> Errors:
    """Relative errors of `actual`; infinite if NaN or infinities are not in the same places in both."""
    assert actual.shape == exact.shape, f"shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    actual, exact = actual.detach().double(), exact.detach().double()
    finite = exact.isfinite()
    same = torch.equal(actual.isfinite(), finite) and torch.equal(
        actual[~finite].nan_to_num(nan=7.0), exact[~finite].nan_to_num(nan=7.0)
    )
    if not same:
        return Errors(float("inf"), float("inf"))
    actual, exact = actual[finite], exact[finite]
    if exact.numel() == 0:
        return Errors(0.0, 0.0)
    difference = actual - exact
    norm, most = exact.norm().item(), exact.abs().max().item()
    if norm == 0:
        zero = 0.0 if not difference.any() else float("inf")
        return Errors(zero, zero)
    return Errors(difference.norm().item() / norm, difference.abs().max().item() / most)


def assert_close(
    name: str,
    actual: torch.Tensor,
    exact_float64: torch.Tensor,
    plain_same_dtype: torch.Tensor,
    dtype: torch.dtype,
    *,
    limits: dict[torch.dtype, Limit] = LIMITS,
) -> None:
    """Check the error of `actual` against the limits of storage dtype `dtype`."""
    limit = limits[dtype]
    ours, plain = errors(actual, exact_float64), errors(plain_same_dtype, exact_float64)
    allowed = min(FACTOR * plain.frobenius + limit.floor, limit.cap)
    allowed_max = min(MAX_FACTOR * plain.largest + 4 * limit.floor, limit.max_cap)
    report = (
        f"{name} ({dtype}): relative Frobenius error {ours.frobenius:.3e}, largest {ours.largest:.3e}; plain torch "
        f"{plain.frobenius:.3e} and {plain.largest:.3e}; allowed {allowed:.3e} and {allowed_max:.3e}"
    )
    assert ours.frobenius <= allowed, report
    assert ours.largest <= allowed_max, report


def gradient_limits(gradient: torch.Tensor) -> dict[torch.dtype, Limit]:
    """The limits for a gradient computed by one backward op: wider ones if it has only a few elements."""
    return {**LIMITS, **GRADIENT_LIMITS} if gradient.numel() < FEW_NUMBERS else LIMITS


def assert_within(name: str, actual: torch.Tensor, exact: torch.Tensor, relative: float) -> None:
    """Limit `actual` to a relative Frobenius error of `relative`, and to 10 times that in its worst element."""
    found = errors(actual, exact)
    report = f"{name}: relative Frobenius error {found.frobenius:.3e}, largest {found.largest:.3e}, allowed {relative}"
    assert found.frobenius <= relative, report
    assert found.largest <= 10 * relative, report
