"""On a GPU: the C++ backend against the float64 reference, in a captured graph, on other streams and devices."""

from __future__ import annotations

import pytest
import torch

from openmythos import dispatch, reference
from openmythos.backends import library
from tests.cases import doubled, each_dtype, listed, randn
from tests.cases.loop_step import step_args
from tests.cases.mla_attention import MODELS, attention_inputs, paged
from tests.cases.moe import experts
from tests.cases.shared_experts import ROUTED, routed_and_shared, triples
from tests.native import calls
from tests.native.moe_cases import SIZES, case, each_half, with_shared
from tests.tolerances import assert_close

pytestmark = pytest.mark.gpu


def _moved(args: list, device: str = "cuda") -> list:
    return [x.to(device) if isinstance(x, torch.Tensor) else x for x in args]


def _native(op: str, args: list) -> list[torch.Tensor]:
    entry = next(entry for entry in dispatch.entries(op, "cuda") if entry.name == "cpp")
    call = dispatch.builder(op)(*args)
    reason = entry.supports(call)
    if reason is not None:
        pytest.skip(reason)
    return listed(entry.run(call))


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


@each_dtype
@pytest.mark.parametrize(
    ("n", "e", "k"),
    [(1, 64, 4), (16, 64, 4), (2, 512, 8), (16, 1024, 16), (5, 7, 7), (17, 64, 4), (8193, 64, 4), (40, 300, 100)],
)
def test_moe_route(dtype: torch.dtype, n: int, e: int, k: int) -> None:
    args = [randn(n, e, dtype=dtype, scale=2), randn(e), k]
    ids, weights, counts = _native("moe_route", _moved(args))
    want = reference.moe_route(*args)
    assert torch.equal(ids.cpu(), want[0])
    assert torch.equal(counts.cpu(), want[2])
    assert_close("weights", weights.cpu(), reference.moe_route(*doubled(args))[1], want[1], torch.float32)


@each_dtype
@pytest.mark.parametrize("n", [1, 2, 7, 16])
@pytest.mark.parametrize(
    ("d", "i", "e", "k", "widths"),
    [(2048, 2048, 16, 4, (8192, 8192)), (97, 47, 7, 2, (94,)), (1000, 1416, 64, 6, ()), (264, 40, 4, 4, (8,) * 16)],
)
def test_moe(dtype: torch.dtype, n: int, d: int, i: int, e: int, k: int, widths: tuple[int, ...]) -> None:
    _check_moe(with_shared(experts(n, d, i, e, k, dtype), *widths), dtype)


def _check_moe(args: list[torch.Tensor], dtype: torch.dtype) -> None:
    moved = _moved(args)
    (found,) = _native("moe_experts", [*moved[:ROUTED], triples(moved)])
    exact, plain = routed_and_shared(*doubled(args)), routed_and_shared(*args)
    assert_close("moe", found.cpu(), exact, plain, dtype)
    (again,) = _native("moe_experts", [*moved[:ROUTED], triples(moved)])
    assert torch.equal(found, again)


@each_half
@pytest.mark.parametrize("name", SIZES)
def test_moe_experts_of_many_rows(dtype: torch.dtype, name: str) -> None:
    _check_moe(case(name, dtype), dtype)


@each_half
@pytest.mark.parametrize("n", [17, 300, 2048])
@pytest.mark.parametrize(
    ("d", "i", "e", "k", "widths"),
    [(2048, 2048, 16, 4, (8192, 8192)), (1000, 1416, 64, 6, ()), (264, 40, 4, 4, (8,) * 16)],
)
def test_moe_experts_of_many_wide_rows(
    dtype: torch.dtype, n: int, d: int, i: int, e: int, k: int, widths: tuple[int, ...]
) -> None:
    _check_moe(with_shared(experts(n, d, i, e, k, dtype), *widths), dtype)


def test_one_expert_takes_all_of_many_rows() -> None:
    args = experts(1000, 264, 136, 7, 1, torch.bfloat16)
    args[1].fill_(3)
    for stack in args[3:]:
        stack[[0, 1, 2, 4, 5, 6]] = float("nan")
    _check_moe(args, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [9, 300])
def test_an_id_that_is_no_expert_makes_its_row_nan(dtype: torch.dtype, n: int) -> None:
    args = _moved(experts(n, 64, 48, 5, 2, dtype))
    args[1][4, 1] = 5
    (out,) = _native("moe_experts", args)
    assert out[4].isnan().all()
    assert out[torch.arange(n, device=out.device) != 4].isfinite().all()


@each_dtype
@pytest.mark.parametrize(("new", "total"), [(1, 63), (1, 4097), (4, 1000), (16, 129)])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_mla_attention(dtype: torch.dtype, new: int, total: int, model: tuple) -> None:
    args = attention_inputs(3, new, total, *model, dtype)
    lengths = torch.tensor([total, total // 2, 17])
    _check("mla_absorbed", [*args, 0.1, True, lengths, None], (dtype, dtype))


@each_dtype
def test_mla_attention_twice_is_equal(dtype: torch.dtype) -> None:
    args = _moved(attention_inputs(2, 2, 2049, 48, (128, 64, 512, 128), dtype))
    first, second = (_native("mla_absorbed", [*args, 0.1, True, None, None]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


each_half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@each_half
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(("new", "total"), [(17, 17), (100, 128), (129, 1000), (1024, 1024), (640, 4096)])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_mla_decompressed(dtype: torch.dtype, new: int, total: int, causal: bool, model: tuple) -> None:
    """Ragged, with one key and with none. Three heads are enough, since heads are independent."""
    args = attention_inputs(4, new, total, 3, model[1], dtype)
    lengths = torch.tensor([total, total // 2, 1, 0])
    for b, length in enumerate(lengths):
        args[2][b, length:] = float("nan")
        args[3][b, length:] = float("nan")
    _check("mla_decompressed", [*args, 0.1, causal, lengths, None], (dtype, dtype))


@each_half
@pytest.mark.parametrize("total", [4096, 4100])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_mla_decompressed_of_every_head_twice_is_equal(dtype: torch.dtype, total: int, model: tuple) -> None:
    args = _moved([*attention_inputs(2, 600, total, *model, dtype), 0.1, True, None, None])
    first, second = (_native("mla_decompressed", args) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@each_half
def test_mla_decompressed_paged(dtype: torch.dtype) -> None:
    args = attention_inputs(3, 129, 400, 3, (128, 64, 512, 128), dtype)
    lengths = torch.tensor([391, 129, 5])
    pools, table = paged(args, lengths.tolist(), 16, 2**30)
    tail = (0.1, True, lengths, table)
    found = _native("mla_decompressed", _moved([*pools, *tail]))
    contiguous = (0.1, True, lengths)
    plain = reference.mla_decompressed(*args, *contiguous)
    exact = reference.mla_decompressed(*(part.double() for part in args), *contiguous)
    for name, mine, true, other in zip(("out", "lse"), found, exact, plain, strict=True):
        assert_close(name, mine.cpu(), true, other, dtype)


def test_captured_and_replayed() -> None:
    """A capture may contain the first launch of a kernel; the graph then holds the kernel but not its loading."""
    args = _moved(step_args(600, 4352, 3, 1, torch.float16))
    static = [x.clone() if isinstance(x, torch.Tensor) else x for x in args]
    if calls.reason("loop_step", *args):
        pytest.skip("the C++ kernels do not serve this device")
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
