"""moe_route: every backend chooses exactly the reference's experts, including ties and NaN."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from openmythos import ops, reference
from tests.backends import Entry, each_entry
from tests.cases import check_entry, check_repeatable, each_dtype, randn
from tests.tolerances import assert_close

SIZES = [
    (1, 1, 1),
    (2, 5, 1),
    (63, 64, 4),
    (129, 47, 47),
    (1, 64, 4),
    (17, 512, 8),
    (0, 8, 2),
    (5, 131, 7),
    (9, 384, 8),
    (33, 61, 16),
]


@each_entry("moe_route")
@each_dtype
@pytest.mark.parametrize("biased", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize(("n", "e", "k"), SIZES)
def test_choice_and_weights(entry: Entry, dtype: torch.dtype, biased: bool, n: int, e: int, k: int) -> None:
    logits = randn(n, e, dtype=dtype, scale=2)
    ids, weights, counts = check_entry(entry, reference.moe_route, (logits, randn(e) if biased else None, k), dtype)
    assert ids.dtype == counts.dtype == torch.int32
    assert weights.dtype == torch.float32
    assert int(counts.sum()) == n * k
    assert torch.equal(counts, torch.bincount(ids.flatten().long(), minlength=e).int())
    assert all(len(set(line)) == k for line in ids.tolist())
    torch.testing.assert_close(weights.sum(-1), torch.ones(n), rtol=0, atol=1e-5)


@each_entry("moe_route")
def test_equals_softmax_gather_renormalise(entry: Entry) -> None:
    logits, bias = randn(33, 47), randn(47, scale=0.5)
    ids, weights, _ = entry.call(logits, bias, 5)
    order = (logits + bias).topk(5).indices
    assert torch.equal(ids.long(), order)
    scores = F.softmax(logits.double(), dim=-1).gather(-1, order)
    torch.testing.assert_close(weights.double(), scores / scores.sum(-1, keepdim=True), rtol=1e-5, atol=1e-7)


@each_entry("moe_route")
@each_dtype
def test_ties_go_to_the_lower_id(entry: Entry, dtype: torch.dtype) -> None:
    ids, weights, _ = entry.call(torch.zeros(3, 97, dtype=dtype), None, 4)
    assert ids.tolist() == [[0, 1, 2, 3]] * 3
    assert torch.equal(weights, torch.full((3, 4), 0.25))
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0, 3.0, 2.0]], dtype=dtype)
    assert entry.call(logits, None, 5)[0].tolist() == [[1, 3, 5, 2, 4]]


@each_entry("moe_route")
@each_dtype
def test_nan_is_never_chosen_before_a_number(entry: Entry, dtype: torch.dtype) -> None:
    logits = torch.tensor([[float("nan"), -1e4, 2.0, float("nan"), 1.0]], dtype=dtype)
    ids, weights, _ = entry.call(logits, None, 3)
    assert ids.tolist() == [[2, 4, 1]]
    assert weights.isfinite().all()


@each_entry("moe_route")
def test_all_nan_still_gives_valid_ids(entry: Entry) -> None:
    ids, _, counts = entry.call(torch.full((2, 7), float("nan")), None, 3)
    assert ids.tolist() == [[0, 1, 2]] * 2
    assert int(counts.sum()) == 6


@each_entry("moe_route")
def test_infinite_logits(entry: Entry) -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 1.0]])
    ids, weights, _ = entry.call(logits, None, 3)
    assert ids.tolist() == [[3, 1, 0]]
    assert weights[0, 2] == 0
    assert weights.isfinite().all()


@each_entry("moe_route")
def test_the_bias_only_selects(entry: Entry) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    ids, weights, _ = entry.call(logits, torch.tensor([0.0, 0.0, 0.0, 10.0]), 2)
    assert ids.tolist() == [[3, 0]]
    torch.testing.assert_close(weights, torch.softmax(torch.tensor([[-1.0, 2.0]]), -1), rtol=1e-6, atol=0)


@each_entry("moe_route")
@each_dtype
def test_strided_logits(entry: Entry, dtype: torch.dtype) -> None:
    wide = randn(13, 100, dtype=dtype)
    check_entry(entry, reference.moe_route, (wide[:, 2:49], randn(100)[:47], 3), dtype)


@each_entry("moe_route")
@each_dtype
def test_repeatable(entry: Entry, dtype: torch.dtype) -> None:
    check_repeatable(entry, (randn(129, 47, dtype=dtype), randn(47), 6))


@each_entry("moe_route")
def test_a_row_alone_equals_the_row_in_a_batch(entry: Entry) -> None:
    logits, bias = randn(63, 47), randn(47)
    ids, weights, _ = entry.call(logits, bias, 4)
    for index in (0, 17, 62):
        alone = entry.call(logits[index : index + 1], bias, 4)
        assert torch.equal(alone[0][0], ids[index])
        assert torch.equal(alone[1][0], weights[index])


@each_entry("moe_route")
def test_zeros_of_both_signs_tie(entry: Entry) -> None:
    logits = torch.tensor([[-1.0, -0.0, 0.0, -0.0, 0.0]])
    assert entry.call(logits, None, 3)[0].tolist() == [[1, 2, 3]]


@each_entry("moe_route_backward")
@each_dtype
@pytest.mark.parametrize(("n", "e", "k"), SIZES)
def test_backward(entry: Entry, dtype: torch.dtype, n: int, e: int, k: int) -> None:
    ids, weights, _ = reference.moe_route(randn(n, e), None, k)
    check_entry(entry, reference.moe_route_backward, (randn(n, k), ids, weights, e, dtype), dtype)


@each_dtype
def test_gradient(dtype: torch.dtype) -> None:
    logits, bias, outer = randn(17, 47, dtype=dtype), randn(47), randn(17, 5)
    found = []
    for cast, function in ((dtype, ops.moe_route), (torch.float64, reference.moe_route), (dtype, reference.moe_route)):
        leaf = logits.to(cast).requires_grad_()
        weights = function(leaf, bias, 5)[1]
        found.append(torch.autograd.grad((weights * outer.to(weights.dtype)).sum(), leaf)[0])
    assert_close("gradient of logits", *found, dtype)
