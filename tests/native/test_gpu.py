"""On a GPU: the native rows against the float64 reference, under a captured graph, on other streams and devices."""

from __future__ import annotations

import pytest
import torch

from openmythos import dispatch, reference
from openmythos.backends import calls, library
from tests.ops.cases import doubled, each_dtype, listed, randn
from tests.ops.test_loop_step import step_args
from tests.tolerances import assert_close

pytestmark = pytest.mark.gpu


def _moved(args: list, device: str = "cuda") -> list:
    return [x.to(device) if isinstance(x, torch.Tensor) else x for x in args]


def _native(op: str, args: list) -> list[torch.Tensor]:
    row = next(row for row in dispatch.rows(op, "cuda") if row.name == "native")
    reason = row.supports(*args)
    if reason is not None:
        pytest.skip(reason)
    return listed(row.call(*args))


def _check(op: str, args: list, dtypes: tuple[torch.dtype, ...]) -> None:
    found = _native(op, _moved(args))
    truth = getattr(reference, op)
    exact, plain = listed(truth(*doubled(args))), listed(truth(*args))
    for index, (mine, true, other, dtype) in enumerate(zip(found, exact, plain, dtypes, strict=True)):
        assert_close(f"output {index}", mine.cpu(), true, other, dtype)


@each_dtype
@pytest.mark.parametrize("t", [0, 17, "rows"])
@pytest.mark.parametrize(
    ("rows", "width", "rank"),
    [(1, 2048, 8), (63, 97, 5), (1024, 2048, 8), (1024, 3072, 8), (700, 6144, 32), (600, 16384, 256), (129, 4096, 0)],
)
def test_loop_step(dtype: torch.dtype, t: object, rows: int, width: int, rank: int) -> None:
    depth = torch.randint(0, 9, (rows,), dtype=torch.int32) if t == "rows" else t
    _check("loop_step", step_args(rows, width, rank, depth, dtype), (dtype, torch.float32, torch.float32, dtype))


@each_dtype
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (63, 97), (4096, 2048), (3, 16384)])
def test_rms_norm(dtype: torch.dtype, rows: int, width: int) -> None:
    args = [randn(rows, width, dtype=dtype), randn(width, dtype=dtype), 1e-6, None]
    _check("rms_norm", args, (dtype,))


def test_captured_and_replayed() -> None:
    """The first launch of a kernel may fall into a capture, which then holds the kernel and not its loading."""
    args = _moved(step_args(600, 4352, 3, 1, torch.float16))
    static = [x.clone() if isinstance(x, torch.Tensor) else x for x in args]
    if next(row for row in dispatch.rows("loop_step", "cuda") if row.name == "native").supports(*args):
        pytest.skip("the native row does not serve this device")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = calls.loop_step(*static)
    static[2].copy_(args[2] * 2)
    graph.replay()
    args[2] = args[2] * 2
    for mine, want in zip(captured, calls.loop_step(*args), strict=True):
        assert torch.equal(mine, want)


def test_the_current_stream_is_taken() -> None:
    x, weight = torch.zeros(2048, 2048, device="cuda"), torch.ones(2048, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.fill_(3)
        (out,) = _native("rms_norm", [x, weight, 1e-6, None])
    stream.synchronize()
    torch.testing.assert_close(out, torch.ones_like(out))


def test_two_runs_are_equal() -> None:
    args = _moved(step_args(1024, 2048, 8, 2, torch.bfloat16))
    first, second = _native("loop_step", args), _native("loop_step", args)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_every_device() -> None:
    for index in range(torch.cuda.device_count()):
        args = _moved([randn(5, 256), randn(256), 1e-6, None], f"cuda:{index}")
        (out,) = _native("rms_norm", args)
        assert out.device.index == index
        torch.testing.assert_close(out, reference.rms_norm(*args))


def test_tensors_on_different_devices_are_refused() -> None:
    if library.not_loaded() is not None:
        pytest.skip(library.not_loaded())
    x, weight = torch.zeros(2, 64, device="cuda"), torch.ones(64)
    with pytest.raises(RuntimeError, match="weight is on another device, expected a CUDA or ROCm one"):
        torch.ops.openmythos_native.rms_norm(x, None, weight, 1e-6, torch.empty_like(x), None)
