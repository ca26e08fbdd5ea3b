"""moe_route and moe before a recording driver: a call launches what its tensors say, or says why not."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openmythos import dispatch
from openmythos.backends import calls, native
from tests.native.fake import FakeOps
from tests.native.moe_cases import launched
from tests.ops.cases import randn, strided
from tests.ops.test_moe_experts import experts

HALF = (torch.float32, torch.bfloat16, torch.float16)
SHORT = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
NAMES = ("x", "ids", "weights", "gate_up", "down", "shared_gate", "shared_up", "shared_down", "out")
SHARED = NAMES[5:8]
# A block of the first launch takes so many hidden units, one of the second so many columns, with so many threads.
BLOCKS = {"rows1": (16, 4, 256, 256), "vectors": (8, 2, 256, 256), "tiles": (16, 16, 128, 512)}


class _Rows(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64), ("type", ctypes.c_int32), ("_", ctypes.c_int32))


class _Route(ctypes.Structure):
    _fields_ = (
        ("logits", _Rows),
        *((name, ctypes.c_void_p) for name in ("bias", "ids", "counts", "weights")),
        *((name, ctypes.c_int64) for name in ("ids_stride", "weights_stride")),
        *((name, ctypes.c_int32) for name in ("rows", "experts", "k", "rows_per_block", "add_counts", "_")),
    )


class _Shared(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("gate", "up", "down")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("gate", "up", "down")),
        *((name, ctypes.c_int32) for name in ("width", "column", "end_block", "_")),
    )


class _Moe(ctypes.Structure):
    _fields_ = (
        ("x", _Rows),
        ("out", _Rows),
        *((name, ctypes.c_void_p) for name in ("gate_up", "down", "act", "ids", "weights")),
        *((name, ctypes.c_int64) for name in ("ids_stride", "weights_stride")),
        ("gate_up_strides", ctypes.c_int64 * 3),
        ("down_strides", ctypes.c_int64 * 2),
        *((name, ctypes.c_int32) for name in ("ids_bytes", "rows", "k", "slots", "experts", "d", "width")),
        *((name, ctypes.c_int32) for name in ("shared_width", "shared_count", "shared_blocks")),
        *((name, ctypes.c_int32) for name in ("hidden_per_block", "aligned")),
        ("shared", _Shared * 16),
    )


def _recorded(fake: FakeOps, kind: type[ctypes.Structure], call: Callable[[], object]) -> tuple[list[tuple], str]:
    """(kernel, grid, threads, shared, stream, params) of every launch, and the error."""
    launches = []

    def run(kernel, *facts):
        *grid, params = facts
        launches.append((kernel, *grid, kind.from_buffer_copy(ctypes.string_at(params, ctypes.sizeof(kind)))))

    with fake.driver.running(run):
        try:
            call()
        except RuntimeError as error:
            return launches, str(error).splitlines()[0]
    return launches, ""


def _valid(size: tuple[int, ...], widths: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    values = dict(zip(NAMES, experts(*size, dtype), strict=False))
    d = size[1]
    values["shared_gate"] = [randn(width, d, dtype=dtype) for width in widths]
    values["shared_up"] = [randn(width, d, dtype=dtype) for width in widths]
    values["shared_down"] = [randn(d, width, dtype=dtype) for width in widths]
    return values | {"out": torch.empty(size[0], d, dtype=dtype)}


def _call(fake: FakeOps, values: dict[str, Any]) -> tuple[list[tuple], str]:
    return _recorded(fake, _Moe, lambda: fake.ops.moe(*(values[name] for name in NAMES)))


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


def _strides(x: torch.Tensor) -> tuple[int, ...]:
    """Those of all but the last axis; where there is but one, its stride may be anything, and is none."""
    return tuple(stride if size > 1 else 0 for stride, size in zip(x.stride()[:-1], x.shape, strict=False))


def _data(x: torch.Tensor, *strides: int) -> bool:
    return all(stride * x.element_size() % 16 == 0 for stride in strides) and x.data_ptr() % 16 == 0


def _check_params(values: dict[str, Any], params: _Moe) -> None:
    x, ids, weights, gate_up, down = (values[name] for name in NAMES[:5])
    rows, k = ids.shape
    experts_, _, width, d = gate_up.shape
    found = (params.rows, params.k, params.slots, params.experts, params.d, params.width)
    assert found == (rows, k, rows * k, experts_, d, width)
    for name in ("x", "out"):
        row = getattr(params, name)
        assert (row.data, row.stride, HALF[row.type]) == (
            values[name].data_ptr(),
            values[name].stride(0),
            values[name].dtype,
        )
    assert (params.ids, params.weights) == (ids.data_ptr(), weights.data_ptr())
    assert (params.gate_up, params.down) == (gate_up.data_ptr(), down.data_ptr())
    assert (params.ids_stride, params.weights_stride) == (ids.stride(0), weights.stride(0))
    assert params.ids_bytes == ids.element_size()
    assert tuple(params.gate_up_strides) == _strides(gate_up)
    assert tuple(params.down_strides) == _strides(down)
    column = 0
    for index, (gate, up, last) in enumerate(zip(*(values[name] for name in SHARED), strict=True)):
        each = params.shared[index]
        assert (each.gate, each.up, each.down) == (gate.data_ptr(), up.data_ptr(), last.data_ptr())
        assert (each.gate_stride, each.up_stride, each.down_stride) == (gate.stride(0), up.stride(0), last.stride(0))
        assert (each.width, each.column) == (gate.shape[0], column)
        column += gate.shape[0]
    assert (params.shared_count, params.shared_width) == (len(values["shared_gate"]), column)
    fast = d % 8 == 0 and width % 8 == 0 and _data(x, x.stride(0))
    fast = fast and _data(gate_up, *_strides(gate_up)) and _data(down, *_strides(down))
    for matrix in (matrix for name in SHARED for matrix in values[name]):
        fast = fast and _data(matrix, matrix.stride(0)) and matrix.shape[1] % 8 == 0
    assert bool(params.aligned) == fast


def _check_launches(values: dict[str, Any], launches: list[tuple]) -> None:
    (up, up_grid, *up_rest, params), (down, down_grid, *down_rest, again) = launches
    assert bytes(params) == bytes(again)
    _check_params(values, params)
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


SETTINGS = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


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
    values = _valid(size, widths, data.draw(st.sampled_from(HALF)))
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
        assert error.startswith("openmythos_native::moe")
        assert error.endswith(".")
        assert "expected" in error
    elif values["x"].shape[0] == 0:
        assert not launches
    elif values["x"].shape[0] > 16 or values["ids"].numel() > 256:
        _check_params(values, launches[0][-1])
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
        ((2, 8, 8, 2, 1), {"shared_up": [torch.zeros(8, 8)]}, "have 0, 1 and 0 tensors, expected as many each"),
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
    launches, error = _call(fake_ops, _valid(size) | change)
    assert said in error
    assert not launches


def test_a_failed_launch_is_the_error_of_its_kernel(fake_ops: FakeOps) -> None:
    for after, part in enumerate(("up", "down")):
        fake_ops.driver.reset(devices=1)
        fake_ops.driver.fail("hipModuleLaunchKernel", code=1, after=after)
        launches, error = _call(fake_ops, _valid((2, 64, 32, 4, 2), (), torch.bfloat16))
        assert f"could not launch openmythos_moe_streamed_{part}_bf16_rows16" in error
        assert len(launches) == after


@pytest.mark.parametrize(("e", "kernel"), [(1, 64), (64, 64), (65, 256), (257, 1024), (1024, 1024)])
@pytest.mark.parametrize(("rows", "blocks"), [(0, 1), (1, 1), (16, 1), (17, 2), (1000, 63)])
def test_route_launches(fake_ops: FakeOps, e: int, kernel: int, rows: int, blocks: int) -> None:
    logits, bias = strided(randn(rows, e, dtype=torch.float16)), randn(e)
    ids, weights = torch.zeros(rows, 1, dtype=torch.int32), torch.zeros(rows, 3)[:, :1]
    counts = torch.full((e,), 7, dtype=torch.int32)
    launches, error = _recorded(fake_ops, _Route, lambda: fake_ops.ops.moe_route(logits, bias, ids, weights, counts))
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
        ((1, 8), 9, "ids.size(1) is 9, expected 1 to 8, the number of experts"),
        ((1, 8), 0, "ids.size(1) is 0, expected 1 to 8, the number of experts"),
    ],
)
def test_route_sentences(fake_ops: FakeOps, shape: tuple[int, int], k: int, said: str) -> None:
    launches, error = _recorded(fake_ops, _Route, lambda: calls.moe_route(torch.zeros(shape), None, k))
    assert said in error
    assert not launches


def test_more_rows_than_route_has_threads(fake_ops: FakeOps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are all the same memory."""
    monkeypatch.setattr(native, "gpu_missing", lambda device=0: None)
    logits, ids, weights = (torch.zeros(1, dtype=kind).expand(2**27, 1) for kind in (HALF[2], torch.int32, HALF[0]))
    counts = torch.zeros(1, dtype=torch.int32)
    launches, error = _recorded(fake_ops, _Route, lambda: fake_ops.ops.moe_route(logits, None, ids, weights, counts))
    assert "there are 134217728 rows, expected fewer than 2^27" in error
    assert not launches
    assert "fewer than 2^27" in _reason("moe_route", logits, None, 1)


def _reason(op: str, *args: object) -> str | None:
    return next(row for row in dispatch.entries(op, "cuda") if row.name == "cpp").supports(*args)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([*experts(2, 8, 8, 2, 1), [(torch.zeros(8, 8),) * 3] * 17], "17 shared experts"),
        ([*experts(2, 8, 8, 2, 1), [(torch.zeros(8, 8).half(),) * 3]], "different dtypes"),
        (experts(2, 8, 8, 2, 1, torch.float64), "dtype torch.float64"),
        ([randn(2, 8), torch.zeros(2, 1), *experts(2, 8, 8, 2, 1)[2:]], "ids of torch.float32"),
        ([randn(2, 8), torch.zeros(2, 2).int().T, *experts(2, 8, 8, 2, 2)[2:]], "last dimension of ids"),
        ([randn(2, 8), torch.zeros(2, 1, device="meta").int(), *experts(2, 8, 8, 2, 1)[2:]], "ids is on meta"),
        ([*experts(2, 8, 8, 2, 1)[:3], torch.zeros(2, 2, 0, 8), torch.zeros(2, 8, 0)], "experts of width 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reasons(monkeypatch: pytest.MonkeyPatch, args: list, said: str) -> None:
    monkeypatch.setattr(native, "gpu_missing", lambda device=0: None)
    assert said in _reason("moe" if len(args) > 5 else "moe_experts", *args)


def test_what_is_served_and_routes_that_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "gpu_missing", lambda device=0: None)
    assert _reason("moe_experts", *experts(16, 97, 47, 64, 4, torch.bfloat16)) is None
    assert _reason("moe", *experts(1, 97, 47, 64, 4), [(randn(5, 97), randn(5, 97), randn(97, 5))]) is None
    assert _reason("moe_route", randn(16, 1024), randn(1024), 16) is None
    assert _reason("moe_route", randn(8193, 64), None, 17) is None
    assert "1025 experts" in _reason("moe_route", randn(1, 1025), None, 4)
