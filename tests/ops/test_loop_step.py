"""loop_step and loop_step_: every backend, depth, dtype mixture and stride; in place equals functional."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from openmythos import ops, reference
from openmythos.ops.loop_step import LoopParams
from tests.backends import Entry, each_entry
from tests.cases import check_entry, check_outputs, check_repeatable, doubled, each_dtype, listed, randn, strided
from tests.cases.loop_step import EPS, THRESHOLD, depth, params, step_args
from tests.tolerances import assert_close

# A gradient depends on one sum per row that nearly cancels, so its rounding dominates. The tolerances apply to a norm,
# so cases with few rows are drawn several times.
FEW_SUMS = 8


SIZES = pytest.mark.parametrize(
    ("rows", "width", "rank"),
    [(1, 7, 1), (1, 29, 1), (2, 97, 3), (63, 131, 8), (129, 47, 5), (5, 256, 16), (0, 97, 3), (4, 97, 0)],
)


@each_entry("loop_step")
@each_dtype
@pytest.mark.parametrize("t", [0, 2, 3, 17, "rows"])
@SIZES
def test_step(entry: Entry, dtype: torch.dtype, t: object, rows: int, width: int, rank: int) -> None:
    depth = torch.randint(0, 9, (rows,), dtype=torch.int32) if t == "rows" else t
    args = step_args(rows, width, rank, depth, dtype)
    new, new_out, new_p, following = check_entry(entry, reference.loop_step, args, dtype)
    assert (new.dtype, new_out.dtype, new_p.dtype, following.dtype) == (dtype, torch.float32, torch.float32, dtype)


@each_entry("loop_step")
@each_dtype
def test_last_step_has_no_next_input(entry: Entry, dtype: torch.dtype) -> None:
    found = check_entry(entry, reference.loop_step, step_args(9, 97, 3, 3, dtype, last=True), dtype)
    assert found[3].numel() == 0


@each_entry("loop_step")
@pytest.mark.parametrize("e_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("h_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mixed_dtypes(entry: Entry, h_dtype: torch.dtype, e_dtype: torch.dtype, block_dtype: torch.dtype) -> None:
    args = step_args(9, 97, 3, 1)
    args[:3] = [part.to(dtype) for part, dtype in zip(args[:3], (h_dtype, e_dtype, block_dtype), strict=True)]
    found = check_entry(entry, reference.loop_step, args, torch.bfloat16)
    assert (found[0].dtype, found[3].dtype) == (h_dtype, e_dtype)
    truth = reference.loop_step(*doubled(args))
    for index in (1, 2):
        plain = reference.loop_step(*args)[index]
        assert_close(f"output {index} is kept in float32", found[index], truth[index], plain, torch.float32)


@each_entry("loop_step")
@each_dtype
def test_strided_rows(entry: Entry, dtype: torch.dtype) -> None:
    args = step_args(19, 97, 3, 2, dtype)
    args[:4] = [strided(part) for part in args[:4]]
    check_entry(entry, reference.loop_step, args, dtype)


@each_entry("loop_step_")
@each_dtype
@pytest.mark.parametrize("t", [0, 5, "rows"])
@pytest.mark.parametrize("shares", [False, True], ids=["own_next", "next_is_block_out"])
def test_in_place_equals_functional(entry: Entry, dtype: torch.dtype, t: object, shares: bool) -> None:
    depth = torch.randint(0, 9, (63,), dtype=torch.int32) if t == "rows" else t
    args = step_args(63, 97, 3, depth, dtype)
    want = reference.loop_step(*args)
    exact = reference.loop_step(*doubled(args))
    state, chosen, tail = [part.clone() for part in args[:5]], args[5:13], args[13:]
    following = state[2] if shares else torch.full_like(state[1], float("nan"))
    kept = state[1].clone()
    entry.call(*state, *chosen, *tail, following)
    assert torch.equal(state[1], kept), "e is only read"
    for name, mine, true, plain in zip(
        ("h", "h_out", "cum_p", "next"), (state[0], state[3], state[4], following), exact, want, strict=True
    ):
        assert_close(name, mine, true, plain, dtype if name in ("h", "next") else torch.float32)


@each_entry("loop_step_")
def test_in_place_without_a_next_input(entry: Entry) -> None:
    args = step_args(9, 97, 3, 2, last=True)
    want = reference.loop_step(*args)
    state = [part.clone() for part in args[:5]]
    entry.call(*state, *args[5:], None)
    for mine, plain in zip((state[0], state[3], state[4]), want, strict=False):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-5)


@each_entry("loop_step")
def test_an_int_equals_a_tensor_of_it(entry: Entry) -> None:
    for t in (0, 2, 9):
        args = step_args(9, 97, 3, t)
        one = entry.call(*args)
        args[13:15] = depth(torch.full((9,), t, dtype=torch.int32))
        for a, b in zip(one, entry.call(*args), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@each_entry("loop_step")
def test_halting_is_exactly_upstreams(entry: Entry) -> None:
    """A crossing row gets what is left of 1, a halted one nothing; cum_p still grows past the threshold."""
    width = 8
    chosen = params(width, 1)._replace(halt_w=torch.zeros(width), halt_b=torch.tensor([0.0]))
    zeros = torch.zeros(5, width)
    cum_p = torch.tensor([0.0, 0.39, 0.41, 0.9, 1.3])
    h = torch.ones(5, width)
    out = entry.call(h, zeros, zeros, zeros, cum_p, *chosen, 0, None, THRESHOLD, EPS, 1)
    weights = torch.tensor([0.5, 0.5, 0.59, 0.0, 0.0])
    torch.testing.assert_close(out[2], torch.tensor([0.5, 0.89, 0.91, 0.9, 1.3]), rtol=0, atol=1e-6)
    torch.testing.assert_close(out[1], weights[:, None] * out[0], rtol=0, atol=1e-6)


@each_entry("loop_step")
def test_threshold_above_one(entry: Entry) -> None:
    args = step_args(9, 97, 3, 1)
    args[15] = 1.5
    check_entry(entry, reference.loop_step, args, torch.float32)


@each_entry("loop_step")
@pytest.mark.parametrize("loop_dim", [0, 1, 7, 12, 97])
def test_any_loop_dim(entry: Entry, loop_dim: int) -> None:
    args = step_args(9, 97, 3, 5)
    args[17] = loop_dim
    check_entry(entry, reference.loop_step, args, torch.float32)


@each_entry("loop_step")
@each_dtype
def test_repeatable(entry: Entry, dtype: torch.dtype) -> None:
    check_repeatable(entry, step_args(129, 131, 5, 2, dtype))


@each_entry("loop_step")
@each_dtype
def test_a_row_alone_equals_the_row_in_a_batch(entry: Entry, dtype: torch.dtype) -> None:
    args = step_args(63, 97, 3, 2, dtype)
    truth = reference.loop_step(*doubled(args))
    for index in (0, 30, 62):
        one = slice(index, index + 1)
        alone = [part[one] for part in args[:5]] + args[5:]
        plain = reference.loop_step(*alone)
        for mine, true, other in zip(entry.call(*alone), truth, plain, strict=True):
            assert_close("row alone", mine, true[one], other, dtype)


def backward_args(args: list) -> list:
    """The arguments of loop_step_backward for those of loop_step, with random gradients of its outputs."""
    h, e, block_out, h_out, cum_p, *rest = args
    grads = [randn(*part.shape, dtype=part.dtype) for part in (h, h_out, cum_p, e)]
    return [*grads, h, e, block_out, cum_p, *rest]


def _backward_reference(*args: object) -> tuple[torch.Tensor, ...]:
    return tuple(reference.loop_step_backward(*args))


def _pooled(function: Callable, size: int) -> Callable[..., list[torch.Tensor]]:
    """`function` of each `size` consecutive arguments; each output concatenates those of all draws."""

    def call(*args: object) -> list[torch.Tensor]:
        draws = [listed(function(*args[i : i + size])) for i in range(0, len(args), size)]
        return [torch.cat(parts) for parts in zip(*draws, strict=True)]

    return call


@each_entry("loop_step_backward")
@each_dtype
@pytest.mark.parametrize("t", [0, 3, "rows"])
@SIZES
def test_backward(entry: Entry, dtype: torch.dtype, t: object, rows: int, width: int, rank: int) -> None:
    def draw() -> list:
        depth = torch.randint(0, 9, (rows,), dtype=torch.int32) if t == "rows" else t
        return backward_args(step_args(rows, width, rank, depth, dtype))

    draws = [draw() for _ in range(max(FEW_SUMS // rows, 1) if rows else 1)]
    together = [x for args in draws for x in args]
    found = _pooled(entry.call, len(draws[0]))(*together)
    check_outputs(
        f"loop_step_backward of {entry.backend}", found, _pooled(_backward_reference, len(draws[0])), together, dtype
    )


@each_entry("loop_step_backward")
@each_dtype
def test_backward_of_the_last_step(entry: Entry, dtype: torch.dtype) -> None:
    found = check_entry(entry, _backward_reference, backward_args(step_args(9, 97, 3, 3, dtype, last=True)), dtype)
    assert found[-1].numel() == 0


@each_entry("loop_step_backward")
@pytest.mark.parametrize("dtypes", [(0, 1, 1), (1, 0, 1), (1, 1, 0)], ids=["h", "e", "block_out"])
def test_backward_of_mixed_dtypes(entry: Entry, dtypes: tuple[int, int, int]) -> None:
    args = step_args(9, 97, 3, 1)
    kinds = [(torch.float32, torch.bfloat16)[kind] for kind in dtypes]
    args[:3] = [part.to(dtype) for part, dtype in zip(args[:3], kinds, strict=True)]
    found = check_entry(entry, _backward_reference, backward_args(args), torch.bfloat16)
    assert [part.dtype for part in found[:3]] == kinds


@each_entry("loop_step_backward")
def test_backward_takes_strided_and_expanded_gradients(entry: Entry) -> None:
    args = backward_args(step_args(19, 97, 3, 2))
    args[0], args[1] = strided(args[0]), torch.ones(()).expand(19, 97)
    args[2], args[3] = torch.ones(()).expand(19), torch.ones(()).expand(19, 97)
    args[4:7] = [strided(part) for part in args[4:7]]
    check_entry(entry, _backward_reference, args, torch.float32)


@each_entry("loop_step_backward")
@each_dtype
def test_backward_is_repeatable(entry: Entry, dtype: torch.dtype) -> None:
    check_repeatable(entry, backward_args(step_args(129, 131, 5, 2, dtype)))


@each_entry("loop_step_backward")
@pytest.mark.slow
@pytest.mark.parametrize("t", [2, "rows"])
@pytest.mark.parametrize(("rows", "width", "rank"), [(3, 8201, 4), (66, 4097, 9), (66, 2048, 16), (5, 32, 200)])
def test_backward_of_wide_rows_and_many_ranks(entry: Entry, t: object, rows: int, width: int, rank: int) -> None:
    depth = torch.randint(0, 9, (rows,), dtype=torch.int32) if t == "rows" else t
    check_entry(entry, _backward_reference, backward_args(step_args(rows, width, rank, depth)), torch.float32)


@each_entry("loop_step")
@pytest.mark.slow
@pytest.mark.parametrize("t", [2, "rows"])
@pytest.mark.parametrize(("rows", "width", "rank"), [(3, 8201, 4), (66, 2048, 16), (5, 32, 200)])
def test_wide_rows_and_many_ranks(entry: Entry, t: object, rows: int, width: int, rank: int) -> None:
    depth = torch.randint(0, 9, (rows,), dtype=torch.int32) if t == "rows" else t
    check_entry(entry, reference.loop_step, step_args(rows, width, rank, depth), torch.float32)


def _gradients(function, args: list, cast: torch.dtype, wide: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    tensors = [None if part is None else part.to(cast if i < 3 else wide) for i, part in enumerate(args[:13])]
    leaves = [None if part is None else part.clone().requires_grad_() for part in tensors]
    outputs = function(*leaves, *args[13:])
    loss = sum((out * torch.randn(out.shape, generator=generator).to(out.dtype)).sum() for out in outputs)
    return torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None])


def _public(*args: object) -> tuple[torch.Tensor, ...]:
    t, t_rows, threshold, eps, loop_dim = args[13:]
    loop = t if t_rows is None else t_rows
    return ops.loop_step(*args[:5], LoopParams(*args[5:13]), loop, threshold=threshold, eps=eps, loop_dim=loop_dim)


def test_a_strided_cum_p_goes_to_a_backend_that_reads_it() -> None:
    args = step_args(9, 97, 3, 1)
    args[4] = torch.stack([args[4]] * 2, 1)[:, 0]
    with torch.no_grad():
        found = _public(*args)
    plain, exact = reference.loop_step(*args), reference.loop_step(*doubled(args))
    for part, mine, true, other in zip(("h", "h_out", "cum_p", "x_next"), found, exact, plain, strict=True):
        assert_close(part, mine, true, other, torch.float32)


@each_dtype
@pytest.mark.parametrize("t", [0, 3, "rows"])
@pytest.mark.parametrize("last", [False, True], ids=["next", "last"])
def test_gradients(dtype: torch.dtype, t: object, last: bool) -> None:
    depth = torch.randint(0, 9, (17,), dtype=torch.int32) if t == "rows" else t
    args = step_args(17, 97, 3, depth, dtype, last)
    found = _gradients(_public, args, dtype, torch.float32)
    truth = _gradients(reference.loop_step, args, torch.float64, torch.float64)
    plain = _gradients(reference.loop_step, args, dtype, torch.float32)
    names = ("h", "e", "block_out", "h_out", "cum_p", *LoopParams._fields)
    for name, mine, true, other in zip(names, found, truth, plain, strict=False):
        assert mine.dtype == other.dtype, name
        assert_close(f"gradient of {name}", mine, true, other, dtype)
