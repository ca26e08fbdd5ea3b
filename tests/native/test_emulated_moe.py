"""moe_route and moe_experts of few rows as gfx1151 code on the emulator; see emulated.py."""

from __future__ import annotations

import pytest
import torch

from openmythos import reference
from tests.cases import doubled, each_dtype, listed, randn, strided
from tests.cases.moe import experts
from tests.cases.shared_experts import routed_and_shared
from tests.native import calls
from tests.native.emulated import Emulated
from tests.native.moe_cases import flat, spread, with_shared
from tests.tolerances import assert_close
from tools import gfx1151_emulator as emulator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulator.missing() is not None, reason=f"{emulator.missing()}"),
]
SHORT = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def _check(emulated: Emulated, args: list[torch.Tensor], kernel: str) -> torch.Tensor:
    (found,) = emulated.check(flat, routed_and_shared, args, [args[0].dtype])
    assert emulated.kernels[-2:] == [f"openmythos_moe_streamed_{part}_{kernel}" for part in ("up", "down")]
    return found


ROUTES = [(1, 64, 4), (16, 64, 16), (3, 256, 8), (2, 200, 40), (16, 1024, 8), (1, 300, 256), (1, 1, 1), (0, 7, 2)]


@each_dtype
@pytest.mark.parametrize("biased", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize(("n", "e", "k"), ROUTES)
def test_route(emulated: Emulated, dtype: torch.dtype, biased: bool, n: int, e: int, k: int) -> None:
    args = (randn(n, e, dtype=dtype, scale=2), randn(e) if biased else None, k)
    dtypes = [torch.float32] * 3
    ids, _, counts = emulated.check(calls.moe_route, reference.moe_route, args, dtypes)
    want = reference.moe_route(*args)
    assert torch.equal(ids, want[0])
    assert torch.equal(counts, want[2])


@pytest.mark.parametrize("e", [7, 97, 300])
def test_route_ties_nan_and_infinities(emulated: Emulated, e: int) -> None:
    logits = torch.zeros(5, e)
    logits[1, 1::2] = 3
    logits[1, 2] = -0.0
    logits[2, ::3] = float("nan")
    logits[3] = float("nan")
    logits[4] = float("-inf")
    logits[4, 3] = 1.0
    found = emulated.call(calls.moe_route, (strided(logits), None, 5))
    for mine, want in zip(found, listed(reference.moe_route(logits, None, 5)), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-6, atol=0, equal_nan=True)


def test_route_of_half_a_bias(emulated: Emulated) -> None:
    args = (randn(2, 64, dtype=torch.bfloat16), randn(64, dtype=torch.bfloat16), 4)
    found = emulated.call(calls.moe_route, args)
    assert torch.equal(found[0], reference.moe_route(*args)[0])


EXPERTS = [
    pytest.param((1, 256, 64, 8, 2), (), "rows1", id="one row"),
    pytest.param((1, 264, 2056, 5, 3), (), "rows1", id="one row of long experts"),
    pytest.param((1, 8, 8, 1, 1), (), "rows1", id="eight numbers"),
    pytest.param((1, 528, 40, 6, 4), (80, 24), "rows1", id="one row and shared experts"),
    pytest.param((2, 64, 48, 5, 3), (), "rows16", id="two rows"),
    pytest.param((16, 264, 56, 64, 4), (), "rows16", id="16 rows, most experts have one"),
    pytest.param((9, 72, 40, 4, 2), (160, 8, 88), "rows16", id="nine rows and shared experts"),
    pytest.param((3, 2056, 1032, 3, 1), (), "rows16", id="three rows of long experts"),
    pytest.param((16, 40, 24, 20, 16), (), "rows16", id="256 choices"),
    pytest.param((5, 24, 16, 6, 1), (), "rows16", id="k is 1"),
    pytest.param((1, 40, 24, 4, 2), tuple(range(8, 136, 8)), "rows1", id="one row and 16 shared experts"),
    pytest.param((5, 40, 24, 4, 2), tuple(range(8, 136, 8)), "rows16", id="16 shared experts"),
]


@each_dtype
@pytest.mark.parametrize(("size", "widths", "kernel"), EXPERTS)
def test_experts(
    emulated: Emulated, dtype: torch.dtype, size: tuple[int, ...], widths: tuple[int, ...], kernel: str
) -> None:
    _check(emulated, with_shared(experts(*size, dtype), *widths), f"{SHORT[dtype]}_{kernel}")


ODD = [
    pytest.param((1, 97, 47, 7, 2), (), id="one row"),
    pytest.param((1, 1, 1, 1, 1), (), id="one number"),
    pytest.param((16, 67, 31, 13, 3), (47, 94), id="16 rows and shared experts"),
    pytest.param((3, 72, 40, 5, 2), (33,), id="only a shared expert is odd"),
    pytest.param((2, 301, 263, 5, 3), (), id="more than a wave's columns"),
]


@each_dtype
@pytest.mark.parametrize(("size", "widths"), ODD)
def test_odd_sizes(emulated: Emulated, dtype: torch.dtype, size: tuple[int, ...], widths: tuple[int, ...]) -> None:
    _check(emulated, with_shared(experts(*size, dtype), *widths), "any")


@each_dtype
def test_strided_operands(emulated: Emulated, dtype: torch.dtype) -> None:
    x, ids, weights, *matrices = with_shared(experts(5, 97, 47, 5, 2, dtype), 60)
    args = [strided(x), strided(ids.float()).int(), strided(weights), *map(strided, matrices)]
    _check(emulated, args, "any")


@each_dtype
@pytest.mark.parametrize("rows", [1, 7])
def test_strided_operands_with_vectors(emulated: Emulated, dtype: torch.dtype, rows: int) -> None:
    x, ids, weights, *matrices = with_shared(experts(rows, 72, 40, 5, 2, dtype), 24)
    args = [spread(x), ids, spread(weights), *map(spread, matrices)]
    _check(emulated, args, f"{SHORT[dtype]}_rows{1 if rows == 1 else 16}")


KINDS = [(1, 32, torch.float32), (9, 32, torch.float32), (1, 32, torch.float16), (9, 32, torch.bfloat16)]
each_kind = pytest.mark.parametrize(
    ("n", "width", "dtype"), [*KINDS, (9, 31, torch.bfloat16)], ids=["f32_1", "f32_16", "f16_1", "bf16_16", "any"]
)


@each_kind
def test_the_same_expert_twice_in_a_row(emulated: Emulated, n: int, width: int, dtype: torch.dtype) -> None:
    args = experts(n, 48, width, 4, 3, dtype)
    args[1][n // 2] = torch.tensor([2, 1, 2])
    emulated.check(calls.moe_experts, reference.moe_experts, args, [dtype])


@each_kind
@pytest.mark.parametrize("bad", [-1, 5, 2**30, 2**32 + 1])
def test_an_id_that_is_no_expert_makes_its_row_nan(
    emulated: Emulated, n: int, width: int, dtype: torch.dtype, bad: int
) -> None:
    args = experts(n, 48, width, 5, 2, dtype)
    exact, plain = reference.moe_experts(*doubled(args)), reference.moe_experts(*args)
    if bad > 2**31:
        args[1] = args[1].long()
    args[1][n // 2, 1] = bad
    (found,) = emulated.call(calls.moe_experts, args)
    assert found[n // 2].isnan().all()
    others = torch.arange(n) != n // 2
    if others.any():
        assert_close("the other rows", found[others], exact[others], plain[others], dtype)


@each_kind
def test_experts_that_no_row_chose_are_never_read(emulated: Emulated, n: int, width: int, dtype: torch.dtype) -> None:
    args = experts(n, 48, width, 7, 1, dtype)
    args[1].fill_(2)
    for stack in args[3:]:
        stack[[0, 1, 3, 4, 5, 6]] = float("nan")
    emulated.check(calls.moe_experts, reference.moe_experts, args, [dtype])


@each_kind
def test_zero_and_negative_weights(emulated: Emulated, n: int, width: int, dtype: torch.dtype) -> None:
    args = experts(n, 48, width, 4, 3, dtype)
    args[2][:, 0], args[2][:, 1] = 0, -1
    emulated.check(calls.moe_experts, reference.moe_experts, args, [dtype])


@each_kind
def test_two_runs_are_equal_and_a_row_alone_is_near(
    emulated: Emulated, n: int, width: int, dtype: torch.dtype
) -> None:
    args = experts(n, 48, width, 6, 3, dtype)
    (first,), (second,) = (emulated.call(calls.moe_experts, args) for _ in range(2))
    assert torch.equal(first, second)
    one = [part[:1] for part in args[:3]] + args[3:]
    (alone,) = emulated.call(calls.moe_experts, one)
    assert_close("row alone", alone, reference.moe_experts(*doubled(one)), reference.moe_experts(*one), dtype)


def test_no_rows(emulated: Emulated) -> None:
    args = experts(0, 48, 32, 4, 2)
    (found,) = emulated.call(calls.moe_experts, args)
    assert found.shape == (0, 48)
    assert not emulated.kernels
