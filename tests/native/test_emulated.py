"""loop_step and rms_norm as gfx1151 code on the emulator; see emulated.py."""

from __future__ import annotations

import pytest
import torch

from openmythos import reference
from tests.cases import doubled, each_dtype, randn, strided
from tests.cases.loop_step import step_args
from tests.native import calls
from tests.native.emulated import Emulated
from tests.tolerances import assert_close
from tools import gfx1151_emulator as emulator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulator.missing() is not None, reason=f"{emulator.missing()}"),
]


def _step_dtypes(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    return dtype, torch.float32, torch.float32, dtype


STEPS = [
    pytest.param(5, 256, 16, 3, "rows1", id="one row a block"),
    pytest.param(2, 4352, 3, 40, "rows1", id="two chunks a thread"),
    pytest.param(9, 256, 40, "rows", "rows2", id="two rows, two tiles of ranks, rows of their own depth"),
    pytest.param(8, 4352, 5, 1, "rows2", id="two rows of two chunks"),
    pytest.param(19, 264, 7, "rows", "rows4", id="four rows, the last block not full"),
    pytest.param(17, 128, 0, 0, "rows4", id="no low-rank delta"),
    pytest.param(3, 97, 5, 17, "any_rows1", id="odd width"),
    pytest.param(2, 131, 33, "rows", "any_rows1", id="odd width, odd rank"),
]


@each_dtype
@pytest.mark.parametrize(("rows", "width", "rank", "t", "kernel"), STEPS)
def test_loop_step(
    emulated: Emulated, dtype: torch.dtype, rows: int, width: int, rank: int, t: object, kernel: str
) -> None:
    depth = torch.randint(0, 9, (rows,), dtype=torch.int32) if t == "rows" else t
    args = step_args(rows, width, rank, depth, dtype)
    emulated.check(calls.loop_step, reference.loop_step, args, _step_dtypes(dtype))
    assert emulated.kernels[0].endswith(kernel), emulated.kernels


def test_the_widest_rows_and_the_highest_rank(emulated: Emulated) -> None:
    args = step_args(1, 16384, 256, 63, torch.bfloat16)
    emulated.check(calls.loop_step, reference.loop_step, args, _step_dtypes(torch.bfloat16))


@pytest.mark.parametrize("last", [False, True], ids=["next", "last"])
def test_in_place_and_without_a_next_input(emulated: Emulated, last: bool) -> None:
    args = step_args(19, 256, 3, 2, torch.bfloat16, last)
    exact, plain = reference.loop_step(*doubled(args)), reference.loop_step(*args)
    h, e, block_out, h_out, cum_p = (part.clone() for part in args[:5])
    following = None if last else block_out
    with emulated.fake.driver.running(emulated.run):
        calls.loop_step_(h, e, block_out, h_out, cum_p, *args[5:], following)
    found = [h, h_out, cum_p, *([] if last else [following])]
    for mine, true, other, dtype in zip(found, exact, plain, _step_dtypes(torch.bfloat16), strict=False):
        assert_close("in place", mine, true, other, dtype)
    assert torch.equal(e, args[1])


def test_mixed_dtypes_and_strided_rows(emulated: Emulated) -> None:
    args = step_args(5, 97, 3, 1)
    args[1], args[2] = args[1].bfloat16(), args[2].half()
    args[:4] = [strided(part) for part in args[:4]]
    dtypes = (torch.float32, torch.float32, torch.float32, torch.bfloat16)
    emulated.check(calls.loop_step, reference.loop_step, args, dtypes)


@pytest.mark.parametrize("loop_dim", [0, 1, 7, 64])
def test_any_loop_dim(emulated: Emulated, loop_dim: int) -> None:
    args = step_args(3, 64, 2, 62)
    args[16] = loop_dim
    emulated.check(calls.loop_step, reference.loop_step, args, _step_dtypes(torch.float32))


def test_a_negative_depth_counts_as_zero(emulated: Emulated) -> None:
    args = step_args(2, 64, 2, torch.tensor([-5, 0], dtype=torch.int32))
    found = emulated.call(calls.loop_step, args)
    args[13:15] = 0, torch.zeros(2, dtype=torch.int32)
    for mine, want in zip(found, emulated.call(calls.loop_step, args), strict=True):
        assert torch.equal(mine, want)


def test_two_runs_are_equal(emulated: Emulated) -> None:
    args = step_args(19, 264, 7, 2, torch.float16)
    first, second = (emulated.call(calls.loop_step, args) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


NORMS = [(1, 8), (3, 97), (5, 256), (2, 2048), (2, 9000), (1, 16384)]


@each_dtype
@pytest.mark.parametrize(("rows", "width"), NORMS)
def test_rms_norm(emulated: Emulated, dtype: torch.dtype, rows: int, width: int) -> None:
    args = (randn(rows, width, dtype=dtype, scale=3), 1 + randn(width, dtype=dtype, scale=0.3), 1e-6, None)
    emulated.check(calls.rms_norm, reference.rms_norm, args, [dtype])


@each_dtype
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rms_norm_of_the_residual_stream(emulated: Emulated, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    x, residual = randn(4, 264), randn(4, 264)
    args = (x, residual, 1 + randn(264, dtype=weight_dtype, scale=0.3), 1e-6, dtype)
    emulated.check(calls.rms_norm_add, reference.rms_norm_add, args, [dtype, torch.float32])


def test_rms_norm_of_mixed_and_strided_rows(emulated: Emulated) -> None:
    args = (strided(randn(4, 97, dtype=torch.float16)), strided(randn(4, 97)), randn(97), 1e-6, torch.bfloat16)
    emulated.check(calls.rms_norm_add, reference.rms_norm_add, args, [torch.bfloat16, torch.float32])
