"""moe_route and moe_experts before a recording driver: a call launches what its tensors say, or says why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.cases import randn, strided
from tests.cases.moe import experts
from tests.native import calls
from tests.native.moe_cases import launched
from tests.native.moe_checks import HALF, NAMES, SETTINGS, SHARED, check_params, valid
from tests.native.structs import MoeExpertsArgs, MoeRouteArgs, recorded
from tools.recording_driver import FakeOps

SHORT = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
# Hidden units of a block of the first launch, columns of a block of the second, and the threads of both.
BLOCKS = {"rows1": (16, 4, 256, 256), "vectors": (8, 2, 256, 256), "tiles": (16, 16, 128, 512)}


def _call(fake: FakeOps, values: dict[str, Any]) -> tuple[list[tuple], str]:
    return recorded(fake, MoeExpertsArgs, lambda: fake.ops.moe_experts(*(values[name] for name in NAMES)))


def _changed(draw: st.DrawFn, x: torch.Tensor) -> torch.Tensor:
    kind = draw(
        st.sampled_from(["dtype", "longer", "shorter", "dimension", "transposed", "strided", "spread", "misaligned"])
    )
    if kind == "dtype":
        return x.to(draw(st.sampled_from([*HALF, torch.float64, torch.int32, torch.int64])))
    if kind == "longer":
        return torch.cat([x, x])
    if kind == "shorter":
        return x[:-1] if x.shape[0] else x
    if kind == "dimension":
        return x[None]
    if kind == "transposed" and x.dim() > 1:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if kind == "strided":
        return strided(x) if x.is_floating_point() else x
    if kind == "spread":
        return torch.stack([x, x], -1).flatten(-2)[..., : x.shape[-1]]
    flat = torch.cat([x.flatten()[:1], x.flatten()])
    return flat[1:].view(x.shape) if x.numel() else x


def _check_launches(values: dict[str, Any], launches: list[tuple]) -> None:
    (up, up_grid, *up_rest, params), (down, down_grid, *down_rest, again) = launches
    assert bytes(params) == bytes(again)
    check_params(values, params)
    rows, dtype = values["x"].shape[0], values["x"].dtype
    kind = "any"
    if params.aligned:
        kind = f"{SHORT[dtype]}_rows{1 if rows == 1 else 16}"
    assert (up, down) == (f"openmythos_moe_streamed_up_{kind}", f"openmythos_moe_streamed_down_{kind}")
    if not params.aligned or (dtype == torch.float32 and rows > 1):
        hidden, columns, up_threads, down_threads = BLOCKS["vectors"]
    else:
        hidden, columns, up_threads, down_threads = BLOCKS["rows1" if rows == 1 else "tiles"]
    ends, total = [], 0
    for gate in values["shared_gate"]:
        total += -(-gate.shape[0] // hidden)
        ends.append(total)
    assert [params.shared[s].end_block for s in range(len(ends))] == ends
    assert (params.shared_blocks, params.hidden_per_block) == (total, hidden)
    assert up_grid == (total + params.slots * -(-params.width // hidden), 1, 1)
    assert down_grid == (-(-params.d // columns), 1, 1)
    assert (up_rest, down_rest) == ([up_threads, 0, 0x57000], [down_threads, 0, 0x57000])


@SETTINGS
@given(st.data())
def test_moe_launches_what_was_given_or_says_why_not(fake_ops: FakeOps, data: st.DataObject) -> None:
    e = data.draw(st.sampled_from([1, 5, 20]))
    size = (
        data.draw(st.integers(0, 17)),
        data.draw(st.sampled_from([1, 8, 40, 64, 97])),
        data.draw(st.sampled_from([1, 8, 31, 48])),
        e,
        data.draw(st.integers(1, min(e, 17))),
    )
    widths = tuple(data.draw(st.lists(st.sampled_from([1, 8, 24, 33]), max_size=4)))
    values = valid(size, widths, data.draw(st.sampled_from(HALF)))
    for _ in range(data.draw(st.integers(0, 2))):
        name = data.draw(st.sampled_from(NAMES))
        if name not in SHARED:
            values[name] = data.draw(st.composite(_changed)(values[name]))
        elif values[name]:
            at = data.draw(st.integers(0, len(values[name]) - 1))
            if data.draw(st.booleans()):
                values[name][at] = data.draw(st.composite(_changed)(values[name][at]))
            else:
                del values[name][at]
    launches, error = _call(fake_ops, values)
    if error:
        assert not launches
        assert error.startswith("openmythos_native::moe_experts: ")
        assert error.endswith(".")
        assert "expected" in error or "must be" in error
    elif values["x"].shape[0] == 0:
        assert not launches
    elif values["x"].shape[0] > 16 or values["ids"].numel() > 256:
        check_params(values, launches[0][-1])
        assert launches[0][-1].aligned
        assert [launch[0] for launch in launches] == launched(values["x"].dtype)
    else:
        _check_launches(values, launches)


@pytest.mark.parametrize(
    ("size", "change", "said"),
    [
        ((2, 8, 8, 2, 1), {"ids": torch.zeros(2, 1)}, "ids has dtype float32, expected int32 or int64"),
        ((2, 8, 8, 2, 1), {"ids": torch.zeros(3, 1).int()}, "ids has shape (3, 1), expected (2, any)"),
        ((2, 8, 8, 2, 1), {"weights": torch.zeros(2, 1).double()}, "weights has dtype float64, expected float32"),
        ((2, 8, 8, 2, 1), {"gate_up": torch.zeros(2, 3, 8, 8)}, "gate_up has shape (2, 3, 8, 8), expected (any, 2,"),
        ((2, 8, 8, 2, 1), {"down": torch.zeros(2, 8, 9)}, "down has shape (2, 8, 9), expected (2, 8, 8)"),
        ((2, 8, 8, 2, 1), {"down": torch.zeros(2, 8, 8).half()}, "down has dtype float16, expected float32 as x"),
        ((2, 8, 8, 2, 1), {"x": torch.zeros(8, 2).T}, "x has innermost stride 2, expected 1"),
        ((2, 8, 8, 2, 1), {"shared_up": [torch.zeros(8, 8)]}, "have 0, 1 and 0 tensors, expected the same number"),
        (
            (2, 8, 8, 2, 1),
            {name: [torch.zeros(8, 8)] * 17 for name in SHARED},
            "17 shared experts, expected at most 16",
        ),
        ((2, 8, 8, 2, 1), {name: [torch.zeros(8, 8).half()] for name in SHARED}, "shared_gate has dtype float16"),
        (
            (2, 8, 8, 2, 1),
            {"gate_up": torch.zeros(2, 2, 0, 8), "down": torch.zeros(2, 8, 0)},
            "gate_up has 0 hidden units an expert, expected 1 to 4194304",
        ),
    ],
)
def test_moe_sentences(fake_ops: FakeOps, size: tuple[int, ...], change: dict[str, Any], said: str) -> None:
    launches, error = _call(fake_ops, valid(size) | change)
    assert said in error
    assert not launches


def test_a_failed_launch_is_the_error_of_its_kernel(fake_ops: FakeOps) -> None:
    for after, part in enumerate(("up", "down")):
        fake_ops.driver.reset(devices=1)
        fake_ops.driver.fail("hipModuleLaunchKernel", code=1, after=after)
        launches, error = _call(fake_ops, valid((2, 64, 32, 4, 2), (), torch.bfloat16))
        assert f"could not launch openmythos_moe_streamed_{part}_bf16_rows16" in error
        assert len(launches) == after


@pytest.mark.parametrize(("e", "kernel"), [(1, 64), (64, 64), (65, 256), (257, 1024), (1024, 1024)])
@pytest.mark.parametrize(("rows", "blocks"), [(0, 1), (1, 1), (16, 1), (17, 2), (1000, 63)])
def test_route_launches(fake_ops: FakeOps, e: int, kernel: int, rows: int, blocks: int) -> None:
    logits, bias = strided(randn(rows, e, dtype=torch.float16)), randn(e)
    ids, weights = torch.zeros(rows, 1, dtype=torch.int32), torch.zeros(rows, 3)[:, :1]
    counts = torch.full((e,), 7, dtype=torch.int32)
    launches, error = recorded(
        fake_ops, MoeRouteArgs, lambda: fake_ops.ops.moe_route(logits, bias, 1, ids, weights, counts)
    )
    assert not error
    ((name, grid, threads, shared, stream, params),) = launches
    assert (name, grid, threads) == (
        f"openmythos_moe_route_experts{kernel}",
        (blocks, 1, 1),
        32 * min(max(rows, 1), 16),
    )
    assert (params.rows_per_block, params.add_counts) == (min(max(rows, 1), 16), blocks > 1)
    assert bool(counts.any()) == (blocks == 1), "several blocks add to zeros"
    assert (shared, stream) == (0, 0x57000)
    assert (params.rows, params.experts, params.k) == (rows, e, 1)
    assert (params.logits.data or 0, params.logits.stride) == (logits.data_ptr(), logits.stride(0))
    assert HALF[params.logits.type] == torch.float16
    assert (params.bias, params.counts) == (bias.data_ptr(), counts.data_ptr())
    assert (params.ids or 0, params.weights or 0) == (ids.data_ptr(), weights.data_ptr())
    assert (params.ids_stride, params.weights_stride) == (ids.stride(0), weights.stride(0))


@pytest.mark.parametrize(
    ("shape", "k", "said"),
    [
        ((1, 1025), 2, "logits has 1025 columns, expected 1 to 1024"),
        ((1, 8), 9, "k is 9, expected 1 to 8, the number of experts"),
        ((1, 8), 0, "k is 0, expected 1 to 8, the number of experts"),
    ],
)
def test_route_sentences(fake_ops: FakeOps, shape: tuple[int, int], k: int, said: str) -> None:
    launches, error = recorded(fake_ops, MoeRouteArgs, lambda: calls.moe_route(torch.zeros(shape), None, k))
    assert said in error
    assert not launches


def test_more_rows_than_route_has_threads(fake_ops: FakeOps) -> None:
    """Rows that are all the same memory."""
    logits, ids, weights = (torch.zeros(1, dtype=kind).expand(2**27, 1) for kind in (HALF[2], torch.int32, HALF[0]))
    counts = torch.zeros(1, dtype=torch.int32)
    launches, error = recorded(
        fake_ops, MoeRouteArgs, lambda: fake_ops.ops.moe_route(logits, None, 1, ids, weights, counts)
    )
    assert "logits has 134217728 rows, expected fewer than 2^27" in error
    assert not launches
    assert "fewer than 2^27" in calls.reason("moe_route", logits, None, 1)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([*experts(2, 8, 8, 2, 1), [(torch.zeros(8, 8),) * 3] * 17], "17 shared experts"),
        (
            [*experts(2, 8, 8, 2, 1), [(torch.zeros(8, 8).half(),) * 3]],
            "shared_gate has dtype float16",
        ),
        (experts(2, 8, 8, 2, 1, torch.float64), "x has dtype float64"),
        ([randn(2, 8), torch.zeros(2, 1), *experts(2, 8, 8, 2, 1)[2:]], "ids has dtype float32"),
        ([randn(2, 8), torch.zeros(2, 2).int().T, *experts(2, 8, 8, 2, 2)[2:]], "ids has innermost stride"),
        (
            [randn(2, 8), torch.zeros(2, 1, device="meta").int(), *experts(2, 8, 8, 2, 1)[2:]],
            "ids is on another",
        ),
        ([*experts(2, 8, 8, 2, 1)[:3], torch.zeros(2, 2, 0, 8), torch.zeros(2, 8, 0)], "gate_up has 0 hidden units"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reasons(fake_ops: FakeOps, args: list, said: str) -> None:
    assert said in calls.reason("moe_experts", *args)


def test_what_is_served_and_routes_that_are_not(fake_ops: FakeOps) -> None:
    assert calls.reason("moe_experts", *experts(16, 97, 47, 64, 4, torch.bfloat16)) is None
    assert (
        calls.reason("moe_experts", *experts(1, 97, 47, 64, 4), [(randn(5, 97), randn(5, 97), randn(97, 5))]) is None
    )
    assert calls.reason("moe_route", randn(16, 1024), randn(1024), 16) is None
    assert calls.reason("moe_route", randn(8193, 64), None, 17) is None
    assert "1025 columns" in calls.reason("moe_route", randn(1, 1025), None, 4)
