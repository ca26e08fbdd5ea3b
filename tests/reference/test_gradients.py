"""Each x_backward of the reference is the derivative of the reference's forward, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from openmythos import ops, reference
from openmythos.ops.loop_step import LoopParams
from tests.cases import doubled, randn
from tests.cases.loop_step import step_args
from tests.cases.mla_attention import attention_inputs
from tests.cases.moe import experts
from tests.tolerances import assert_within

EXACT = 1e-12


def derivative(
    function: Callable, leaves: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Autograd's gradients for the floating outputs of `function`."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    outputs = function(*leaves)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    loss = sum((out * grad).sum() for out, grad in zip(outputs, grads, strict=True))
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if part is None else part for leaf, part in zip(leaves, found, strict=True)]


def compare(names: Sequence[str], found: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> None:
    for name, a, b in zip(names, found, want, strict=True):
        assert_within(f"gradient of {name}", a, b, EXACT)


def double(*shape: int) -> torch.Tensor:
    return randn(*shape).double()


@pytest.mark.parametrize("shape", [(1, 3), (5, 97), (2, 3, 47), (97,), (0, 7)], ids=str)
def test_rms_norm(shape: tuple[int, ...]) -> None:
    x, weight, grad = double(*shape), double(shape[-1]), double(*shape)
    want = derivative(lambda *leaves: reference.rms_norm(*leaves, 1e-6), (x, weight), [grad])
    compare(("x", "weight"), reference.rms_norm_backward(grad, x, weight, 1e-6), want)


@pytest.mark.parametrize("k", [1, 3, 47])
@pytest.mark.parametrize("biased", [False, True], ids=["no_bias", "bias"])
def test_moe_route(k: int, biased: bool) -> None:
    logits, bias = double(17, 47), double(47) if biased else None
    ids, weights, _ = reference.moe_route(logits, bias, k)
    grad = double(17, k)
    want = derivative(lambda leaf: reference.moe_route(leaf, bias, k)[1], [logits], [grad])
    compare(["logits"], [reference.moe_route_backward(grad, ids, weights, 47, torch.float64)], want)


@pytest.mark.parametrize("size", [(1, 7, 5, 3, 2), (33, 47, 31, 7, 3), (9, 13, 11, 5, 5), (8, 13, 11, 1, 1)], ids=str)
def test_moe_experts(size: tuple[int, ...]) -> None:
    x, ids, weights, gate_up, down = doubled(experts(*size))
    grad = double(*x.shape)
    want = derivative(
        lambda x, weights, gate_up, down: reference.moe_experts(x, ids, weights, gate_up, down),
        (x, weights, gate_up, down),
        [grad],
    )
    found = reference.moe_experts_backward(grad, x, ids, weights, gate_up, down)
    compare(("x", "weights", "gate_up", "down"), found, want)


@pytest.mark.parametrize("form", ["absorbed", "decompressed"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("ragged", [False, True], ids=["equal", "ragged"])
def test_mla_attention(form: str, causal: bool, ragged: bool) -> None:
    args = doubled(attention_inputs(3, 4, 9, 3, (13, 6, 37, 17)))
    lengths = torch.tensor([9, 5, 0]) if ragged else None
    forward = {"absorbed": reference.mla_absorbed, "decompressed": reference.mla_decompressed}[form]
    out, lse = forward(*args, 0.2, causal, lengths)
    grad = double(*out.shape)
    want = derivative(lambda *leaves: forward(*leaves, 0.2, causal, lengths)[0], args, [grad])
    found = reference.mla_attention_backward(grad, *args, out, lse, 0.2, causal, lengths)
    compare(("q_nope", "q_rope", "latent", "k_rope", "w_uk", "w_uv"), found, want)
    assert all(part.isfinite().all() for part in want)


@pytest.mark.parametrize("t", [0, 2, 9, "rows"])
@pytest.mark.parametrize("last", [False, True], ids=["next", "last"])
@pytest.mark.parametrize("threshold", [0.9, 1.5])
def test_loop_step(t: object, last: bool, threshold: float) -> None:
    depth = torch.tensor([0, 1, 5, 9, 3], dtype=torch.int32) if t == "rows" else t
    args = doubled(step_args(5, 97, 3, depth, last=last))
    tail = (*args[13:15], threshold, *args[16:])
    given = [part for part in args[:13] if part is not None]

    def forward(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return reference.loop_step(*leaves, *((None,) if last else ()), *tail)

    outputs = forward(*given)
    grads = [double(*out.shape) for out in outputs]
    want = derivative(forward, given, grads)
    h, e, block_out, _, cum_p = args[:5]
    found = list(reference.loop_step_backward(*grads, h, e, block_out, cum_p, *args[5:13], *tail))
    found.insert(3, grads[1])
    names = ("h", "e", "block_out", "h_out", "cum_p", *LoopParams._fields)
    compare(names[: len(given)], found[: len(given)], want)


def test_public_ops_gradcheck() -> None:
    """Forward and backward ops agree in float64, by finite differences."""
    x, weight = double(3, 5).requires_grad_(), double(5).requires_grad_()
    assert torch.autograd.gradcheck(lambda *leaves: ops.rms_norm(*leaves), (x, weight))
    attention = [part.requires_grad_() for part in doubled(attention_inputs(1, 2, 3, 2, (3, 2, 4, 3)))]
    assert torch.autograd.gradcheck(
        lambda *leaves: ops.mla_attention(*leaves, scale=0.3, causal=True),
        [part.detach().clone().requires_grad_() for part in attention],
    )
    one = doubled(experts(4, 3, 5, 3, 2))
    assert torch.autograd.gradcheck(
        lambda x, w, g, d: ops.moe_experts(x, one[1], w, ops.StackedExperts(g, d)),
        [one[i].requires_grad_() for i in (0, 2, 3, 4)],
    )
    assert torch.autograd.gradcheck(lambda logits: ops.moe_route(logits, None, 2)[1], (double(3, 4).requires_grad_(),))
    step = [part.requires_grad_() for part in doubled(step_args(3, 8, 2, 1))[:13]]
    assert torch.autograd.gradcheck(
        lambda *leaves: ops.loop_step(*leaves[:5], LoopParams(*leaves[5:]), 1, threshold=0.9, loop_dim=2), step
    )
