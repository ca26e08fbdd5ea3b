"""moe_experts: every backend, with experts without rows, one expert for all rows, every k and odd widths."""

from __future__ import annotations

import pytest
import torch

from openmythos import dispatch, ops, reference
from openmythos.backends.torch import grouped_experts
from openmythos.backends.triton import INTERPRETED
from openmythos.ops.moe import MoeExperts
from tests.backends import Entry, each_entry
from tests.cases import check_entry, check_outputs, check_repeatable, each_dtype, listed, randn, strided
from tests.cases.moe import experts
from tests.tolerances import assert_close, errors

SIZES = {
    "one row": (1, 97, 47, 7, 2),
    "one number": (1, 1, 1, 1, 1),
    "decode": (1, 64, 131, 64, 4),
    "few rows": (2, 97, 131, 5, 3),
    "63 rows": (63, 47, 97, 13, 4),
    "129 rows": (129, 131, 67, 11, 2),
    "k is 1": (33, 48, 64, 7, 1),
    "k is E": (17, 97, 47, 5, 5),
    "one expert": (21, 47, 97, 1, 1),
    "more experts than rows": (3, 47, 31, 61, 2),
    "17 rows": (17, 64, 48, 13, 3),
    "384 experts": (35, 47, 16, 384, 8),
    "512 experts": (40, 33, 17, 512, 8),
    "k is 16": (16, 48, 31, 23, 16),
    "no rows": (0, 97, 47, 5, 2),
}
each_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())


@each_entry("moe_experts")
@each_dtype
@each_size
def test_experts(entry: Entry, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    check_entry(entry, reference.moe_experts, experts(*size, dtype), dtype)


@each_entry("moe_experts")
@each_dtype
@pytest.mark.parametrize("only", [0, 2, 6])
def test_one_expert_takes_everything_and_the_others_are_never_read(
    entry: Entry, dtype: torch.dtype, only: int
) -> None:
    args = experts(65, 97, 47, 7, 1, dtype)
    args[1].fill_(only)
    for stack in args[3:]:
        stack[[other for other in range(7) if other != only]] = float("nan")
    check_entry(entry, reference.moe_experts, args, dtype)


@each_entry("moe_experts")
def test_the_same_expert_twice_in_a_row(entry: Entry) -> None:
    args = experts(9, 47, 31, 4, 2)
    args[1][3] = torch.tensor([2, 2])
    check_entry(entry, reference.moe_experts, args, torch.float32)


@each_entry("moe_experts")
@each_dtype
def test_strided_operands(entry: Entry, dtype: torch.dtype) -> None:
    x, ids, weights, gate_up, down = experts(19, 97, 47, 5, 2, dtype)
    args = (strided(x), strided(ids.float()).int(), strided(weights), strided(gate_up), strided(down))
    check_entry(entry, reference.moe_experts, args, dtype)


@each_entry("moe_experts")
def test_int64_ids(entry: Entry) -> None:
    x, ids, weights, gate_up, down = experts(19, 97, 47, 5, 2)
    check_entry(entry, reference.moe_experts, (x, ids.long(), weights, gate_up, down), torch.float32)


@each_entry("moe_experts")
def test_zero_and_negative_weights(entry: Entry) -> None:
    args = experts(9, 47, 31, 4, 3)
    args[2][:, 0], args[2][:, 1] = 0, -1
    check_entry(entry, reference.moe_experts, args, torch.float32)


@each_entry("moe_experts")
@each_dtype
@pytest.mark.parametrize("n", [1, 5, 129])
def test_repeatable(entry: Entry, dtype: torch.dtype, n: int) -> None:
    check_repeatable(entry, experts(n, 131, 97, 7, 3, dtype))


@each_entry("moe_experts")
@each_dtype
def test_a_row_alone_equals_the_row_in_a_batch(entry: Entry, dtype: torch.dtype) -> None:
    x, ids, weights, gate_up, down = experts(63, 97, 47, 7, 2, dtype)
    truth = reference.moe_experts(x.double(), ids, weights.double(), gate_up.double(), down.double())
    for index in (0, 31, 62):
        one = slice(index, index + 1)
        args = (x[one], ids[one], weights[one], gate_up, down)
        assert_close("row alone", entry.call(*args), truth[one], reference.moe_experts(*args), dtype)


@each_entry("moe_experts")
@pytest.mark.parametrize("bad", [-1, 5, 2**30])
def test_ids_outside_the_experts_are_an_error(entry: Entry, bad: int) -> None:
    for n in (9, 40):
        args = experts(n, 47, 31, 5, 2)
        args[1][4, 1] = bad
        if entry.backend == "triton":
            # an error would have to wait for the GPU
            out = entry.call(*args)
            assert out[4].isnan().all()
            assert out[torch.arange(n) != 4].isfinite().all()
        else:
            with pytest.raises((ValueError, RuntimeError, IndexError)):
                entry.call(*args)


def far_apart(x: torch.Tensor, stride: int) -> torch.Tensor:
    """x with its first dimension `stride` elements apart, in memory that is mostly never touched."""
    buffer = torch.empty((x.shape[0] - 1) * stride + x[0].numel(), dtype=x.dtype)
    view = buffer.as_strided(x.shape, (stride, *x.stride()[1:]))
    view.copy_(x)
    return view


@pytest.mark.slow
@each_entry("moe_experts")
@pytest.mark.parametrize("n", [3, 19], ids=["decode", "grouped"])
def test_offsets_past_two_to_the_31(entry: Entry, n: int) -> None:
    x, ids, weights, gate_up, down = experts(n, 48, 32, 3, 2, torch.bfloat16)
    stride = 2**30 + 64
    args = [
        far_apart(x[:3], stride) if n == 3 else x,
        ids,
        weights,
        far_apart(gate_up, stride),
        far_apart(down, stride),
    ]
    check_entry(entry, reference.moe_experts, args, torch.bfloat16)


@each_entry("moe_experts_hidden")
@each_dtype
@each_size
def test_hidden(entry: Entry, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    check_entry(entry, reference.moe_experts_hidden, experts(*size, dtype), dtype)


def _backward_args(size: tuple[int, ...], dtype: torch.dtype, keep: bool) -> list[torch.Tensor | None]:
    args = experts(*size, dtype)
    hidden = reference.moe_experts_hidden(*args)[1] if keep else None
    return [randn(*args[0].shape, dtype=dtype), *args, hidden]


keep_or_recompute = pytest.mark.parametrize("keep", [True, False], ids=["kept", "recomputed"])


@each_entry("moe_experts_backward")
@each_dtype
@keep_or_recompute
@each_size
def test_backward(entry: Entry, dtype: torch.dtype, keep: bool, size: tuple[int, ...]) -> None:
    args = _backward_args(size, dtype, keep)
    found = listed(entry.call(*args))
    # the exact result uses float64 gate x and up x, which plain torch recomputes or was given rounded
    check_outputs("gradients", found, lambda *all_: reference.moe_experts_backward(*all_[:6]), args, dtype)
    idle = torch.ones(size[3], dtype=torch.bool)
    idle[args[2].flatten().long()] = False
    assert not found[2][idle].any()
    assert not found[3][idle].any()


@each_entry("moe_experts_backward")
@each_dtype
def test_backward_of_one_expert_alone_never_reads_the_others(entry: Entry, dtype: torch.dtype) -> None:
    args = _backward_args((65, 97, 47, 7, 1), dtype, keep=False)
    args[2].fill_(2)
    for stack in args[4:6]:
        stack[[0, 1, 3, 4, 5, 6]] = float("nan")
    found = check_entry(entry, reference.moe_experts_backward, args, dtype)
    assert found[3][2].any()
    assert not found[3][3:].any()


@each_entry("moe_experts_backward")
@each_dtype
def test_backward_of_strided_operands(entry: Entry, dtype: torch.dtype) -> None:
    grad, x, ids, weights, gate_up, down, _ = _backward_args((19, 97, 47, 5, 2), dtype, keep=False)
    args = (strided(grad), strided(x), ids, strided(weights), strided(gate_up), strided(down))
    check_entry(entry, reference.moe_experts_backward, args, dtype)


@each_entry("moe_experts_backward")
def test_backward_of_a_gradient_that_is_one_number(entry: Entry) -> None:
    args = _backward_args((19, 97, 47, 5, 2), torch.float32, keep=False)
    args[0] = torch.ones(()).expand(19, 97)
    check_entry(entry, reference.moe_experts_backward, args, torch.float32)


@each_entry("moe_experts_backward")
@each_dtype
def test_backward_is_repeatable(entry: Entry, dtype: torch.dtype) -> None:
    check_repeatable(entry, _backward_args((130, 67, 48, 5, 3), dtype, keep=False))


@pytest.mark.skipif(not INTERPRETED, reason="needs Triton's kernels, interpreted: TRITON_INTERPRET=1")
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_what_the_forward_keeps(recompute: bool) -> None:
    x, ids, weights, gate_up, down = experts(19, 48, 31, 5, 2)
    leaves = [part.requires_grad_() for part in (x, weights, gate_up, down)]
    kept = []
    with (
        dispatch.use_backend("triton"),
        dispatch.record() as counts,
        torch.autograd.graph.saved_tensors_hooks(
            lambda part: kept.append(tuple(part.shape)) or part, lambda part: part
        ),
    ):
        out = ops.moe_experts(x, ids, weights, ops.StackedExperts(gate_up, down), recompute=recompute)
        found = torch.autograd.grad(out.sin().sum(), leaves)
    assert ((19, 2, 2, 31) in kept) is not recompute
    assert set(counts) == {
        ("moe_experts" if recompute else "moe_experts_hidden", "triton"),
        ("moe_experts_backward", "triton"),
    }
    want = torch.autograd.grad(reference.moe_experts(x, ids, weights, gate_up, down).sin().sum(), leaves)
    for mine, theirs in zip(found, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@each_size
def test_grouped_mm(size: tuple[int, ...]) -> None:
    if any(width % 8 for width in size[1:3]):
        pytest.skip("grouped_mm needs strides of 16 bytes")
    args = experts(*size, torch.bfloat16)
    check_outputs(
        "grouped_mm", [grouped_experts(MoeExperts.from_flat(*args))], reference.moe_experts, args, torch.bfloat16
    )


def public(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, *stacks: torch.Tensor) -> torch.Tensor:
    """The public function of the op's arguments."""
    return ops.moe_experts(x, ids, weights, ops.StackedExperts(*stacks))


@each_dtype
@each_size
def test_gradients(dtype: torch.dtype, size: tuple[int, ...]) -> None:
    x, ids, weights, gate_up, down = experts(*size, dtype)
    outer, found = randn(*x.shape), []
    for cast, function in (
        (dtype, public),
        (torch.float64, reference.moe_experts),
        (dtype, reference.moe_experts),
    ):
        leaves = [part.to(cast).requires_grad_() for part in (x, gate_up, down)]
        weight = weights.to(torch.promote_types(cast, torch.float32)).requires_grad_()
        out = function(leaves[0], ids, weight, leaves[1], leaves[2])
        # Without rows the reference's output does not depend on the weights; a gradient of zero is right.
        loss = (out * outer.to(cast)).sum() + sum(0 * leaf.sum() for leaf in (*leaves, weight))
        found.append(torch.autograd.grad(loss, (*leaves, weight)))
    for name, mine, true, plain in zip(("x", "gate_up", "down", "weights"), *found, strict=True):
        assert mine.dtype == plain.dtype
        assert_close(f"gradient of {name}", mine, true, plain, dtype)


@pytest.mark.parametrize("shared", [0, 1, 3])
def test_moe_is_routed_plus_shared(shared: int) -> None:
    x, _, _, gate_up, down = experts(19, 97, 47, 5, 2)
    router, bias = randn(5, 97), randn(5, scale=0.1)
    dense = [tuple(randn(*shape, scale=0.1) for shape in ((31, 97), (31, 97), (97, 31))) for _ in range(shared)]
    found = ops.moe(x, router, bias, 2, ops.StackedExperts(gate_up, down, tuple(dense)))
    ids, weights, _ = reference.moe_route(x.double() @ router.double().T, bias.double(), 2)
    want = reference.moe_experts(x.double(), ids, weights, gate_up.double(), down.double())
    for part in dense:
        want = want + reference.swiglu(x.double(), *(matrix.double() for matrix in part))
    assert errors(found, want).frobenius < 1e-6
