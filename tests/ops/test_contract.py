"""torch.library's requirements of every op: schema, fake, autograd, and tracing without a graph break."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from openmythos import dispatch, ops
from openmythos.ops.loop_step import LoopParams
from tests.cases import randn
from tests.cases.loop_step import step_args
from tests.cases.mla_attention import attention_inputs
from tests.cases.moe import experts

pytestmark = pytest.mark.unpoisoned

op = torch.ops.openmythos
EPS = 1e-6


def _leaves(args: list[object]) -> tuple[object, ...]:
    return tuple(
        part.clone().requires_grad_() if isinstance(part, torch.Tensor) and part.is_floating_point() else part
        for part in args
    )


def _norm(dtype: torch.dtype = torch.float32) -> list[object]:
    return [randn(5, 97, dtype=dtype), randn(97, dtype=dtype), EPS, None]


def _norm_add(dtype: torch.dtype = torch.float32) -> list[object]:
    return [randn(5, 97, dtype=dtype), *_norm(dtype)]


def _attention(dtype: torch.dtype = torch.float32) -> list[object]:
    return [*attention_inputs(2, 3, 9, 3, (13, 6, 37, 17), dtype), 0.2, True, torch.tensor([9, 4]), None]


def _contiguous(args: list[object]) -> list[object]:
    return [part.contiguous() if isinstance(part, torch.Tensor) else part for part in args]


def _rows() -> torch.Tensor:
    return torch.tensor([0, 3, 9, 1, 2], dtype=torch.int32)


def _loop_backward(t: object) -> tuple[object, ...]:
    h, e, block_out, h_out, cum_p, *rest = step_args(5, 97, 3, t)
    grads = [torch.randn_like(part) for part in (h, h_out, cum_p, e)]
    return (*grads, h, e, block_out, cum_p, *rest)


def _in_place(t: object) -> tuple[object, ...]:
    args = step_args(5, 97, 3, t)
    return (*args, torch.zeros(5, 97))


def _append(position: torch.Tensor | None) -> tuple[object, ...]:
    return randn(2, 3, 26), randn(20), randn(9, 3, 2), torch.zeros(2, 9, 26), position, EPS


CASES: dict[str, tuple[Callable, Callable]] = {
    "rms_norm": (op.rms_norm.default, lambda: _leaves(_norm())),
    "rms_norm bfloat16": (op.rms_norm.default, lambda: _leaves(_norm(torch.bfloat16))),
    "rms_norm to bfloat16": (op.rms_norm.default, lambda: _leaves([*_norm()[:3], torch.bfloat16])),
    "rms_norm_add": (op.rms_norm_add.default, lambda: _leaves(_norm_add())),
    "rms_norm_backward": (op.rms_norm_backward.default, lambda: (randn(5, 97), *_norm()[:3])),
    "rope": (op.rope.default, lambda: (randn(2, 3, 5, 8).requires_grad_(), randn(3, 4, 2), False)),
    "rope inverse": (op.rope.default, lambda: (randn(2, 3, 5, 8, dtype=torch.bfloat16), randn(3, 4, 2), True)),
    "rope_append_": (op.rope_append_.default, lambda: _append(None)),
    "rope_append_ at a position": (op.rope_append_.default, lambda: _append(torch.tensor([6, 0]))),
    "moe_route": (op.moe_route.default, lambda: (randn(7, 11).requires_grad_(), randn(11), 3)),
    "moe_route without bias": (op.moe_route.default, lambda: (randn(7, 11, dtype=torch.bfloat16), None, 11)),
    "moe_route_backward": (
        op.moe_route_backward.default,
        lambda: (randn(7, 2), torch.tensor([[0, 3]] * 7), torch.full((7, 2), 0.5), 5, torch.bfloat16),
    ),
    "moe_experts": (op.moe_experts.default, lambda: _leaves(experts(7, 13, 11, 5, 2))),
    "moe_experts without rows": (op.moe_experts.default, lambda: tuple(experts(0, 13, 11, 5, 2))),
    "moe_experts_hidden": (op.moe_experts_hidden.default, lambda: _leaves(experts(7, 13, 11, 5, 2))),
    "moe_experts_backward": (op.moe_experts_backward.default, lambda: (randn(7, 13), *experts(7, 13, 11, 5, 2))),
    "moe_experts_backward hidden": (
        op.moe_experts_backward.default,
        lambda: (randn(7, 13), *experts(7, 13, 11, 5, 2), randn(7, 2, 2, 11)),
    ),
    "mla_decompressed": (op.mla_decompressed.default, lambda: _leaves(_attention())),
    "mla_absorbed": (op.mla_absorbed.default, lambda: _leaves(_attention())),
    "mla_absorbed bfloat16": (op.mla_absorbed.default, lambda: tuple(_attention(torch.bfloat16))),
    "mla_attention_backward": (
        op.mla_attention_backward.default,
        lambda: (
            randn(2, 3, 3, 17),
            *_contiguous(_attention()[:6]),
            randn(2, 3, 3, 17),
            randn(2, 3, 3),
            0.2,
            True,
            None,
        ),
    ),
    "loop_step": (op.loop_step.default, lambda: _leaves(step_args(5, 97, 3, 2))),
    "loop_step last": (op.loop_step.default, lambda: _leaves(step_args(5, 97, 3, 2, last=True))),
    "loop_step rows": (op.loop_step.default, lambda: _leaves(step_args(5, 97, 3, _rows()))),
    "loop_step_backward": (op.loop_step_backward.default, lambda: _loop_backward(2)),
    "loop_step_backward rows": (op.loop_step_backward.default, lambda: _loop_backward(_rows())),
    "loop_step_": (op.loop_step_.default, lambda: _in_place(2)),
    "loop_step_ rows": (op.loop_step_.default, lambda: _in_place(_rows())),
}


@pytest.mark.parametrize("name", CASES)
def test_opcheck(name: str) -> None:
    function, make = CASES[name]
    utils = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    # That check sums the outputs in the first one's dtype, which fails for integer ids before float weights;
    # test_compiles_without_a_graph_break traces the same gradient.
    torch.library.opcheck(function, make(), test_utils=utils[:3] if name == "moe_route" else utils)


def test_every_op_is_covered() -> None:
    declared = {key.split("::")[1] for key in torch._C._dispatch_get_all_op_names() if key.startswith("openmythos::")}
    covered = {function._schema.name.split("::")[1] for function, _ in CASES.values()}
    overloads = {name.split(".")[0] for name in declared}
    assert overloads == covered
    assert covered <= set(dispatch.ops())


def _public_cases() -> dict[str, tuple[Callable, list[torch.Tensor]]]:
    angles = randn(3, 4)
    table = torch.stack((angles.cos(), angles.sin()), -1)
    step = step_args(5, 97, 3, 2)
    one = experts(7, 13, 11, 5, 2)

    def loop(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return ops.loop_step(*tensors[:5], LoopParams(*tensors[5:]), 2, threshold=0.9, loop_dim=12)

    return {
        "rms_norm": (ops.rms_norm, [randn(5, 97), randn(97)]),
        "rms_norm_add": (ops.rms_norm_add, [randn(5, 97), randn(5, 97), randn(97)]),
        "linear": (ops.linear, [randn(5, 97), randn(47, 97)]),
        "swiglu": (ops.swiglu, [randn(5, 13), randn(11, 13), randn(11, 13), randn(13, 11)]),
        "rope": (ops.rope, [randn(2, 3, 5, 8), table]),
        "moe_route": (lambda logits, bias: ops.moe_route(logits, bias, 3), [randn(7, 11), randn(11)]),
        "moe_experts": (
            lambda x, w, g, d: ops.moe_experts(x, one[1], w, ops.StackedExperts(g, d)),
            [one[0], *one[2:]],
        ),
        "moe": (
            lambda x, r, b, g, d: ops.moe(x, r, b, 2, ops.StackedExperts(g, d)),
            [one[0], randn(5, 13), randn(5), *one[3:]],
        ),
        "mla_attention": (
            lambda *tensors: ops.mla_attention(*tensors, scale=0.2, causal=True),
            attention_inputs(2, 3, 9, 3, (13, 6, 37, 17)),
        ),
        "loop_step": (loop, step[:13]),
    }


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", list(_public_cases()))
def test_compiles_without_a_graph_break(name: str, grad: bool) -> None:
    torch._dynamo.reset()
    function, args = _public_cases()[name]
    args = [part.clone().requires_grad_(grad) for part in args]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(grad):
        want, found = function(*args), compiled(*args)
    want, found = ([part] if isinstance(part, torch.Tensor) else part for part in (want, found))
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    if not grad:
        return
    wanted = [part for part in want if part.requires_grad]
    for a, b in zip(
        torch.autograd.grad(sum(part.sum() for part in found if part.requires_grad), args, allow_unused=True),
        torch.autograd.grad(sum(part.sum() for part in wanted), args, allow_unused=True),
        strict=True,
    ):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_autocast_casts_the_products() -> None:
    args = attention_inputs(1, 3, 9, 3, (13, 6, 37, 17))
    x, ids, weights, gate_up, down = experts(7, 13, 11, 5, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.mla_attention(*args, scale=0.2, causal=True).dtype == torch.bfloat16
        assert ops.moe_experts(x, ids, weights, ops.StackedExperts(gate_up, down)).dtype == torch.bfloat16
        assert ops.linear(x, randn(5, 13)).dtype == torch.bfloat16
        assert ops.rms_norm(x, randn(13)).dtype == torch.float32
