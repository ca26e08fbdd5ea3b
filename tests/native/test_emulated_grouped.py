"""moe_experts of many rows, and moe_route of several blocks, as gfx1151 code on the emulator; see emulated.py."""

from __future__ import annotations

import pytest
import torch

from openmythos import reference
from tests.cases import doubled, each_dtype, randn, strided
from tests.cases.moe import experts
from tests.cases.shared_experts import routed_and_shared
from tests.native import calls
from tests.native.emulated import Emulated
from tests.native.moe_cases import SIZES, case, each_half, flat, launched, spread, with_shared
from tests.tolerances import assert_close
from tools import gfx1151_emulator as emulator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulator.missing() is not None, reason=f"{emulator.missing()}"),
]


@each_half
@pytest.mark.parametrize("name", SIZES)
def test_experts(emulated: Emulated, dtype: torch.dtype, name: str) -> None:
    emulated.check(flat, routed_and_shared, case(name, dtype), [dtype])
    assert emulated.kernels == launched(dtype)


@each_half
@pytest.mark.parametrize("only", [0, 6])
def test_one_expert_takes_everything_and_the_others_are_never_read(
    emulated: Emulated, dtype: torch.dtype, only: int
) -> None:
    args = experts(265, 48, 24, 7, 1, dtype)
    args[1].fill_(only)
    for stack in args[3:]:
        stack[[other for other in range(7) if other != only]] = float("nan")
    emulated.check(flat, routed_and_shared, args, [dtype])


@each_half
@pytest.mark.parametrize("bad", [-1, 5, 2**30, 2**32 + 1])
def test_ids_that_are_no_experts_make_their_rows_nan(emulated: Emulated, dtype: torch.dtype, bad: int) -> None:
    args = with_shared(experts(140, 48, 40, 5, 2, dtype), 24)
    exact, plain = routed_and_shared(*doubled(args)), routed_and_shared(*args)
    rows = [0, 77, 139]
    args[1] = args[1].long()
    args[1][rows, 1] = bad
    (found,) = emulated.call(flat, args)
    assert found[rows].isnan().all()
    others = [row for row in range(140) if row not in rows]
    assert_close("the other rows", found[others], exact[others], plain[others], dtype)


def test_no_id_is_an_expert(emulated: Emulated) -> None:
    args = experts(20, 48, 40, 5, 2, torch.bfloat16)
    args[1].fill_(-1)
    (found,) = emulated.call(flat, args)
    assert found.isnan().all()


def test_shared_experts_alone(emulated: Emulated) -> None:
    args = with_shared(experts(140, 48, 40, 5, 1, torch.bfloat16), 24, 136)
    args[1:3] = [args[1][:, :0], args[2][:, :0]]
    emulated.check(flat, routed_and_shared, args, [torch.bfloat16])
    assert emulated.kernels == launched(torch.bfloat16, slots=False)


@each_half
def test_the_same_expert_twice_in_a_row_and_weights_of_any_sign(emulated: Emulated, dtype: torch.dtype) -> None:
    args = experts(130, 48, 24, 4, 3, dtype)
    args[1][::3] = torch.tensor([2, 1, 2], dtype=torch.int32)
    args[2][:, 0], args[2][::2, 1] = 0, -1
    emulated.check(flat, routed_and_shared, args, [dtype])


@each_half
def test_strided_operands(emulated: Emulated, dtype: torch.dtype) -> None:
    args = with_shared(experts(35, 72, 40, 5, 2, dtype), 24)
    emulated.check(flat, routed_and_shared, [spread(args[0]), args[1], *map(spread, args[2:])], [dtype])


def test_two_runs_are_equal(emulated: Emulated) -> None:
    args = case("tiles that are not full", torch.bfloat16)
    (first,), (second,) = (emulated.call(flat, args) for _ in range(2))
    assert torch.equal(first, second)


ROUTES = [(17, 64, 4), (100, 64, 16), (40, 300, 100), (3, 1024, 1024), (33, 7, 7), (129, 1, 1)]


@each_dtype
@pytest.mark.parametrize("biased", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize(("n", "e", "k"), ROUTES)
def test_route(emulated: Emulated, dtype: torch.dtype, biased: bool, n: int, e: int, k: int) -> None:
    args = (strided(randn(n, e, dtype=dtype, scale=2)), randn(e) if biased else None, k)
    ids, _, counts = emulated.check(calls.moe_route, reference.moe_route, args, [torch.float32] * 3)
    want = reference.moe_route(*args)
    assert torch.equal(ids, want[0])
    assert torch.equal(counts, want[2])
