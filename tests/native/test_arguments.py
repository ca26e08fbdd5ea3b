"""The GPU ops' argument checks: a call launches what its tensors say, or raises a sentence and launches nothing."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cases.loop_step import step_args
from tests.native import calls
from tests.native.structs import LoopStepArgs, Matrix
from tools.recording_driver import FakeOps

NAMES = (
    *("h", "e", "block_out", "h_out", "cum_p", "A", "B", "lora_down", "lora_scale", "lora_b", "halt_w", "halt_b"),
    *("norm_w", "t", "t_rows", "threshold", "eps", "loop_dim", "x_next", "h_new", "h_out_new", "cum_p_new"),
)
TENSORS = [name for name in NAMES if name not in ("t", "threshold", "eps", "loop_dim")]
HALF = (torch.float32, torch.bfloat16, torch.float16)


def _valid(rows: int, width: int, rank: int, dtype: torch.dtype, last: bool, own_depths: bool) -> dict[str, Any]:
    args = step_args(rows, width, rank, 1, dtype, last)
    values = dict(zip(NAMES, args, strict=False))
    if own_depths:
        values["t_rows"] = torch.zeros(rows, dtype=torch.int32)
    values |= {"h_new": args[0].clone(), "h_out_new": args[3].clone(), "cum_p_new": args[4].clone()}
    values["x_next"] = None if last else args[1].clone()
    return values


@st.composite
def _damage(draw: st.DrawFn, values: dict[str, Any]) -> None:
    """Changes one argument into something that may or may not be allowed."""
    name = draw(st.sampled_from(NAMES))
    x = values[name]
    if not isinstance(x, torch.Tensor):
        if name in ("t", "loop_dim"):
            values[name] = draw(st.sampled_from([-1, 0, 1, 2**30, 2**40, 9000]))
        return
    kind = draw(
        st.sampled_from(["dtype", "longer", "shorter", "dimension", "transposed", "strided", "misaligned", "none"])
    )
    if kind == "dtype":
        values[name] = x.to(draw(st.sampled_from([*HALF, torch.float64, torch.int32, torch.int64])))
    elif kind == "longer":
        values[name] = torch.cat([x, x])
    elif kind == "shorter":
        values[name] = x[:-1] if x.shape[0] else x
    elif kind == "dimension":
        values[name] = x[None]
    elif kind == "transposed" and x.dim() == 2:
        values[name] = x.T.contiguous().T
    elif kind == "strided":
        values[name] = torch.stack([x, x], -1).flatten(-2)[..., : x.shape[-1]]
    elif kind == "misaligned":
        flat = torch.cat([x.flatten()[:1], x.flatten()]) if x.numel() else x.flatten()
        values[name] = flat[-x.numel() :].view(x.shape) if x.numel() else x
    elif kind == "none" and name in ("norm_w", "x_next", "t_rows"):
        values[name] = None


def _call(fake: FakeOps, values: dict[str, Any]) -> tuple[list[tuple], str]:
    """(kernel, grid, threads, shared, params) of every launch, and the error."""
    launches = []

    def run(kernel, grid, threads, shared, stream, params):
        launches.append(
            (
                kernel,
                grid,
                threads,
                shared,
                LoopStepArgs.from_buffer_copy(ctypes.string_at(params, ctypes.sizeof(LoopStepArgs))),
            )
        )

    with fake.driver.running(run):
        try:
            fake.ops.loop_step(*(values[name] for name in NAMES))
        except RuntimeError as error:
            return launches, str(error).splitlines()[0]
    return launches, ""


def _check_launch(values: dict[str, Any], launch: tuple) -> None:
    kernel, grid, threads, shared, params = launch
    rows, width = values["h"].shape
    assert (params.n, params.d, params.rank) == (rows, width, values["lora_down"].shape[0])
    assert params.loop_dim == values["loop_dim"]
    for name in TENSORS:
        x, found = values[name], getattr(params, name)
        address = found.data if isinstance(found, Matrix) else found
        assert (address or 0) == (0 if x is None else x.data_ptr()), name
        if isinstance(found, Matrix) and x is not None:
            assert found.stride == x.stride(0), name
            assert HALF[found.type] == x.dtype, name
            if "any" not in kernel and rows > 1:
                assert x.data_ptr() % 16 == 0, f"{name} is read by vectors"
                assert x.stride(0) * x.element_size() % 16 == 0, f"{name} is read by vectors"
    if "any" not in kernel:
        assert len({values[name].dtype for name in ("h", "e", "block_out", "h_new")}) == 1
        assert width % 8 == 0
    each = int(kernel[-1])
    assert grid == (-(-rows // each), 1, 1)
    assert threads % 32 == 0
    assert threads * 8 * (4 // each) >= width
    tables = each if values["t_rows"] is not None else 1
    assert shared == (0 if values["x_next"] is None else 4 * values["loop_dim"] * tables)


SETTINGS = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SETTINGS
@given(st.data())
def test_loop_step_launches_what_was_given_or_says_why_not(fake_ops: FakeOps, data: st.DataObject) -> None:
    rows, width = data.draw(st.integers(0, 20)), data.draw(st.sampled_from([1, 8, 64, 97, 4096, 4104]))
    values = _valid(
        rows,
        width,
        data.draw(st.integers(0, 5)),
        data.draw(st.sampled_from(HALF)),
        data.draw(st.booleans()),
        data.draw(st.booleans()),
    )
    for _ in range(data.draw(st.integers(0, 2))):
        data.draw(_damage(values))
    launches, error = _call(fake_ops, values)
    if error:
        assert not launches
        assert error.startswith("openmythos_native::loop_step: ")
        assert error.endswith(".")
        assert "expected" in error
    else:
        assert len(launches) == (1 if rows else 0)
        for launch in launches:
            _check_launch(values, launch)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"h": torch.zeros(3, 16385)}, "expected 1 to 16384"),
        ({"lora_down": torch.zeros(257, 64)}, "expected"),
        ({"t": -1}, "t is -1, expected 0 or more"),
        ({"loop_dim": 65}, "loop_dim is 65, expected 0 to 64"),
        (
            {"e": torch.zeros(3, 64, dtype=torch.float64)},
            "e has dtype float64, expected float32, bfloat16 or float16",
        ),
        ({"norm_w": None}, "norm_w is None, expected a tensor because x_next is given"),
        ({"cum_p": torch.zeros(4)}, "cum_p has shape (4), expected (3)"),
        ({"block_out": torch.zeros(64, 3).T}, "block_out has innermost stride 3, expected 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_sentences(fake_ops: FakeOps, change: dict[str, Any], said: str) -> None:
    values = _valid(3, 64, 2, torch.float32, False, False) | change
    if change.keys() & {"h"}:
        values |= {name: change["h"] for name in ("e", "block_out", "h_out", "h_new", "h_out_new", "x_next")}
        for name in ("A", "B", "halt_w", "norm_w"):
            values[name] = torch.zeros(16385)
        values["lora_down"] = values["lora_b"] = torch.zeros(2, 16385)
    launches, error = _call(fake_ops, values)
    assert said in error
    assert not launches


@pytest.mark.parametrize(
    ("op", "change", "said"),
    [
        ("loop_step", {}, None),
        ("loop_step_", {}, None),
        ("loop_step", {"cum_p": torch.zeros(3, 2)[:, 0]}, "cum_p has innermost stride 2, expected 1"),
        ("loop_step_", {"x_next": torch.zeros(3, 64, dtype=torch.float64)}, "x_next has dtype float64"),
        ("loop_step_", {"x_next": torch.zeros(64, 3).T}, "x_next has innermost stride 3, expected 1"),
    ],
    ids=lambda value: next(iter(value), "served") if isinstance(value, dict) else "",
)
def test_what_is_served(fake_ops: FakeOps, op: str, change: dict[str, Any], said: str | None) -> None:
    values = _valid(3, 64, 2, torch.float32, False, False) | change
    names = NAMES[: NAMES.index("loop_dim") + 1] + (("x_next",) if op == "loop_step_" else ())
    reason = calls.reason(op, *(values[name] for name in names))
    assert reason is None if said is None else said in reason


def test_a_failed_launch_names_kernel_grid_and_device(fake_ops: FakeOps) -> None:
    fake_ops.driver.fail("hipModuleLaunchKernel", code=1)
    _, error = _call(fake_ops, _valid(3, 64, 2, torch.float32, False, False))
    assert "could not launch openmythos_loop_step_f32_rows1, grid (3, 1, 1) of 32 threads" in error
    assert "cuda:0 (gfx1151)" in error
    assert "hipErrorFake (invented for a test)" in error


def test_reasons_and_code(fake_ops: FakeOps) -> None:
    assert fake_ops.ops.gpu_reason(0) == ""
    assert "cuda:7 does not exist" in fake_ops.ops.gpu_reason(7)
    assert fake_ops.ops.gpu_code() == "rocm 0.0, code objects for gfx1151"
