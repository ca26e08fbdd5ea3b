"""moe_experts of many rows before a recording driver: five launches over scratch that holds all, or a reason."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cases import randn
from tests.cases.moe import experts
from tests.native import calls
from tests.native.moe_cases import SHORT, each_half, launched, spread
from tests.native.moe_checks import NAMES, SETTINGS, check_params, valid
from tests.native.structs import MoeGroupedArgs, recorded
from tools.recording_driver import FakeOps

HALF = st.sampled_from(list(SHORT))
AMD_TILES = 2 * 256 * 64


def _call(fake: FakeOps, values: dict) -> tuple[list[tuple], str]:
    return recorded(fake, MoeGroupedArgs, lambda: fake.ops.moe_experts(*(values[name] for name in NAMES)))


def _parts(size: int, part: int) -> int:
    return -(-size // part)


def _check_scratch(params: MoeGroupedArgs) -> None:
    """Its pieces follow each other, each as large as what is written to it."""
    moe, shared_rows = params.moe, params.moe.rows if params.moe.shared_count else 0
    pieces = [
        (moe.act, 2 * (moe.slots * moe.width + moe.rows * moe.shared_width)),
        (params.y, 2 * (moe.slots + shared_rows) * moe.d),
        (params.tiles, 16 * params.tile_count),
        (params.counts, 4 * params.chunks * moe.experts),
        (params.slots, 4 * moe.slots),
    ]
    for (begin, size), (following, _) in itertools.pairwise(pieces):
        assert begin + size == following
    assert moe.act % 16 == params.y % 16 == params.tiles % 16 == 0


@settings(SETTINGS, max_examples=50)
@given(st.data())
def test_launches(fake_ops: FakeOps, data: st.DataObject) -> None:
    rows, e = data.draw(st.integers(17, 700)), data.draw(st.sampled_from([1, 5, 64]))
    k = data.draw(st.integers(1, min(e, 9)))
    size = (rows, *(8 * data.draw(st.integers(1, 20)) for _ in range(2)), e, k)
    widths = tuple(8 * width for width in data.draw(st.lists(st.integers(1, 40), max_size=4)))
    dtype = data.draw(HALF)
    values = valid(size, widths, dtype)
    launches, error = _call(fake_ops, values)
    assert not error
    assert [launch[0] for launch in launches] == launched(dtype)
    assert len({bytes(launch[-1]) for launch in launches}) == 1
    params = launches[0][-1]
    check_params(values, params.moe)
    _check_scratch(params)
    slots, dense = rows * k, _parts(rows, 128) if widths else 0
    assert params.chunk % 256 == 0
    assert params.chunks == _parts(slots, params.chunk)
    assert params.chunks <= 64
    most = max((slots - used) // 128 + used for used in range(min(e, slots) + 1))
    assert params.tile_count >= most, "as many tiles as rows can make"
    ends, end = [], 0
    for width in widths:
        end += dense * _parts(width, 64)
        ends.append(end)
    assert [params.moe.shared[s].end_block for s in range(len(widths))] == ends
    assert (params.moe.shared_blocks, params.moe.hidden_per_block) == (end, 64)
    up = end + params.tile_count * _parts(size[2], 64)
    down = (dense + params.tile_count) * _parts(size[1], 128)
    grids = [params.chunks, params.chunks, up, down, rows]
    assert [launch[1] for launch in launches] == [(blocks, 1, 1) for blocks in grids]
    threads = [256, 256, 256, 256, min(256, 32 * _parts(size[1], 256))]
    assert [launch[2] for launch in launches] == threads
    assert [launch[3] for launch in launches] == [0, 0, AMD_TILES, AMD_TILES, 0]
    assert {launch[4] for launch in launches} == {0x57000}


def test_few_rows_of_many_choices_and_padded_rows(fake_ops: FakeOps) -> None:
    values = valid((8, 40, 24, 64, 40), (64,), torch.float16)
    values = {name: spread(x) if name in ("x", "gate_up", "down", "out") else x for name, x in values.items()}
    launches, error = _call(fake_ops, values)
    assert not error
    assert [launch[0] for launch in launches] == launched(torch.float16)
    assert launches[0][-1].moe.out.stride == 56


@each_half
@pytest.mark.parametrize("part", range(5))
def test_a_failed_launch_is_the_error_of_its_kernel(fake_ops: FakeOps, dtype: torch.dtype, part: int) -> None:
    fake_ops.driver.reset(devices=1)
    fake_ops.driver.fail("hipModuleLaunchKernel", code=1, after=part)
    launches, error = _call(fake_ops, valid((20, 64, 32, 4, 2), (), dtype))
    assert f"could not launch {launched(dtype)[part]}" in error
    assert len(launches) == part


MISALIGNED = ": the sizes must be multiples of 8 and rows of x, gate_up, down and the shared experts 16-byte aligned"


@pytest.mark.parametrize(
    ("size", "widths", "dtype", "said"),
    [
        (
            (17, 8, 8, 2, 1),
            (),
            torch.float32,
            "in float32, which has no matrix instructions: expected at most 16",
        ),
        ((17, 12, 8, 2, 1), (), torch.bfloat16, MISALIGNED),
        ((17, 8, 7, 2, 1), (), torch.bfloat16, MISALIGNED),
        ((17, 8, 8, 2, 1), (8, 9), torch.float16, MISALIGNED),
        ((16, 7, 8, 17, 17), (), torch.bfloat16, "16 rows with 17 choices of experts each" + MISALIGNED),
        (
            (17, 8, 8, 1025, 1),
            (),
            torch.bfloat16,
            "choices of experts each and 1025 experts, expected at most 1024",
        ),
    ],
)
def test_sentences(fake_ops: FakeOps, size: tuple[int, ...], widths: tuple[int, ...], dtype: torch.dtype, said: str):
    launches, error = _call(fake_ops, valid(size, widths, dtype))
    assert said in error
    assert not launches


@pytest.mark.parametrize("name", ["x", "gate_up", "down", "out"])
def test_rows_that_begin_elsewhere(fake_ops: FakeOps, name: str) -> None:
    values = valid((17, 8, 8, 2, 1), (), torch.bfloat16)
    values[name] = torch.cat([values[name].flatten()[:1], values[name].flatten()])[1:].view(values[name].shape)
    launches, error = _call(fake_ops, values)
    assert (MISALIGNED if name != "out" else "rows of out must be 16-byte aligned") in error
    assert not launches


def test_the_stride_of_a_single_expert_is_anything(fake_ops: FakeOps) -> None:
    values = valid((17, 8, 8, 1, 1), (), torch.bfloat16)
    for name in ("gate_up", "down"):
        values[name] = values[name].as_strided(
            values[name].shape, (values[name].numel() + 4, *values[name].stride()[1:])
        )
    assert calls.reason("moe_experts", *(values[name] for name in ("x", "ids", "weights", "gate_up", "down"))) is None
    launches, error = _call(fake_ops, values)
    assert not error
    assert launches


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (experts(17, 8, 8, 2, 1), "17 rows with 1 choices of experts each in float32, which has no matrix instruct"),
        (experts(17, 12, 8, 2, 1, torch.float16), "multiples of 8"),
        ([*experts(17, 8, 8, 2, 1, torch.float16), [(randn(9, 8).half(),) * 2 + (randn(8, 9).half(),)]], "of 8"),
        (experts(17, 8, 8, 1025, 1, torch.bfloat16), "1025 experts, expected at most 1024"),
        (experts(16, 12, 8, 17, 17, torch.bfloat16), "16 rows with 17 choices of experts each: the sizes"),
        ([randn(20, 12).bfloat16()[:, 1:9], *experts(20, 8, 8, 2, 1, torch.bfloat16)[1:]], "16-byte aligned"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reasons(fake_ops: FakeOps, args: list, said: str) -> None:
    assert said in calls.reason("moe_experts", *args)


def test_what_is_served(fake_ops: FakeOps) -> None:
    assert calls.reason("moe_experts", *experts(300, 72, 40, 64, 4, torch.bfloat16)) is None
    assert calls.reason("moe_experts", *experts(8, 72, 40, 64, 40, torch.float16)) is None
    shared = [tuple(part.half() for part in (randn(16, 72), randn(16, 72), randn(72, 16)))]
    assert calls.reason("moe_experts", *experts(17, 72, 40, 64, 4, torch.float16), shared) is None


@pytest.mark.parametrize(
    ("rows", "width", "k"), [(2**24, 8, 1), (2**20, 2**17, 1), (2**23, 8, 255)], ids=["rows", "blocks", "slots"]
)
def test_more_than_a_launch_has(fake_ops: FakeOps, rows: int, width: int, k: int) -> None:
    """Rows that are all the same memory."""
    one = valid((1, 8, 8, 1, 1), (), torch.bfloat16)
    values = one | {name: one[name].expand(rows, -1) for name in ("x", "out")}
    values["ids"], values["weights"] = torch.zeros(k).int().expand(rows, k), torch.zeros(k).expand(rows, k)
    values["gate_up"] = torch.zeros(8, dtype=torch.bfloat16).expand(1, 2, width, 8)
    values["down"] = torch.zeros(width, dtype=torch.bfloat16).expand(1, 8, width)
    launches, error = _call(fake_ops, values)
    assert "fewer than 2^" in error
    assert not launches
    assert "fewer than 2^" in calls.reason("moe_experts", *(values[name] for name in NAMES[:5]))
