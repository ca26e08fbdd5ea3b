"""Random shapes: each op on drawn sizes, every backend against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openmythos import dispatch, reference
from tests.backends import Entry
from tests.cases import check_entry, randn
from tests.cases.loop_step import step_args
from tests.cases.mla_attention import attention_inputs
from tests.cases.moe import experts

drawn = settings(derandomize=True, deadline=None, max_examples=15)
DTYPES = st.sampled_from((torch.float32, torch.bfloat16))


def small(least: int, most: int) -> st.SearchStrategy[int]:
    return st.integers(least, most)


def check_all(op: str, function, args: list, dtype: torch.dtype) -> None:
    """Check every backend that can serve these arguments."""
    served = [entry for entry in dispatch.entries(op, "cpu") if entry.supports(dispatch.builder(op)(*args)) is None]
    for entry in served:
        check_entry(Entry(op, entry.name, "cpu"), function, args, dtype)


@drawn
@given(n=small(0, 40), d=small(1, 300), dtype=DTYPES)
def test_rms_norm_add(n: int, d: int, dtype: torch.dtype) -> None:
    args = [randn(n, d, dtype=dtype), randn(n, d, dtype=dtype), randn(d, dtype=dtype), 1e-6, None]
    check_all("rms_norm_add", reference.rms_norm_add, args, dtype)


@drawn
@given(n=small(0, 40), k=small(1, 300), o=small(1, 90), dtype=DTYPES)
def test_linear(n: int, k: int, o: int, dtype: torch.dtype) -> None:
    check_all("linear", reference.linear, [randn(n, k, dtype=dtype), randn(o, k, dtype=dtype)], dtype)


@drawn
@given(n=small(0, 40), d=small(1, 150), i=small(1, 150), o=small(1, 90), dtype=DTYPES)
def test_swiglu(n: int, d: int, i: int, o: int, dtype: torch.dtype) -> None:
    gate, up = (randn(i, d, dtype=dtype, scale=d**-0.5) for _ in range(2))
    args = [randn(n, d, dtype=dtype), gate, up, randn(o, i, dtype=dtype, scale=i**-0.5)]
    check_all("swiglu", reference.swiglu, args, dtype)


@drawn
@given(data=st.data(), n=small(0, 40), e=small(1, 90), dtype=DTYPES)
def test_moe_route(data: st.DataObject, n: int, e: int, dtype: torch.dtype) -> None:
    k = data.draw(small(1, e))
    # Few distinct logits, so that ties are frequent.
    logits = torch.randint(-2, 3, (n, e)).to(dtype)
    check_all("moe_route", reference.moe_route, [logits, None, k], dtype)


@drawn
@given(data=st.data(), n=small(0, 40), d=small(1, 90), i=small(1, 90), e=small(1, 12), dtype=DTYPES)
def test_moe_experts(data: st.DataObject, n: int, d: int, i: int, e: int, dtype: torch.dtype) -> None:
    k = data.draw(small(1, e))
    check_all("moe_experts", reference.moe_experts, experts(n, d, i, e, k, dtype), dtype)


@drawn
@given(
    data=st.data(),
    batch=small(1, 3),
    total=small(1, 90),
    heads=small(1, 5),
    dn=small(1, 20),
    half=small(1, 10),
    dc=small(1, 70),
    dv=small(1, 20),
    dtype=DTYPES,
    causal=st.booleans(),
    form=st.sampled_from(("absorbed", "decompressed")),
)
def test_mla_attention(data, batch, total, heads, dn, half, dc, dv, dtype, causal, form) -> None:
    new = data.draw(small(1, total))
    lengths = torch.tensor(data.draw(st.lists(small(0, total), min_size=batch, max_size=batch)))
    args = attention_inputs(batch, new, total, heads, (dn, 2 * half, dc, dv), dtype)
    check_all(f"mla_{form}", getattr(reference, f"mla_{form}"), [*args, 0.2, causal, lengths, None], dtype)


@drawn
@given(n=small(0, 40), d=small(1, 300), r=small(0, 20), t=small(0, 30), dtype=DTYPES, last=st.booleans())
def test_loop_step(n: int, d: int, r: int, t: int, dtype: torch.dtype, last: bool) -> None:
    check_all("loop_step", reference.loop_step, step_args(n, d, r, t, dtype, last), dtype)


@pytest.mark.parametrize("op", ["rms_norm_add", "linear", "moe_route", "moe_experts", "mla_absorbed", "loop_step"])
def test_some_entry_serves_every_op(op: str) -> None:
    assert dispatch.entries(op, "cpu")[-1].name == "reference"
