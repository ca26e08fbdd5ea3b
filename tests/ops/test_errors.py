"""Every bad argument raises before anything runs, with a message that names it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import openmythos
from openmythos import ops
from openmythos.ops.loop_step import LoopParams
from tests.cases import randn
from tests.cases.loop_step import step_args
from tests.cases.mla_attention import attention_inputs
from tests.cases.moe import experts


def attend(changes: dict[int, torch.Tensor] | None = None, **options: object) -> Callable:
    """A call of mla_attention with some of its six tensors replaced."""

    def call() -> None:
        args = attention_inputs(2, 3, 9, 3, (13, 6, 37, 17))
        for index, value in (changes or {}).items():
            args[index] = value
        ops.mla_attention(*args, **{"scale": 0.2, "causal": True, **options})

    return call


def expert_call(changes: dict[int, torch.Tensor]) -> Callable:
    """A call of moe_experts with some of its tensors replaced."""

    def call() -> None:
        args = experts(7, 13, 11, 5, 2)
        for index, value in changes.items():
            args[index] = value
        x, ids, weights, *stacks = args
        ops.moe_experts(x, ids, weights, ops.StackedExperts(*stacks))

    return call


def step(changes: dict[int, object], in_place: bool = False, **options: object) -> Callable:
    """A call of loop_step with some of its arguments replaced."""

    def call() -> None:
        args = step_args(5, 97, 3, 2)
        for index, value in changes.items():
            args[index] = value
        function = ops.loop_step_ if in_place else ops.loop_step
        function(*args[:5], LoopParams(*args[5:13]), args[13], threshold=0.9, loop_dim=12, **options)

    return call


def append(changes: dict[int, torch.Tensor]) -> Callable:
    """A call of rope_append_ with some of its tensors replaced."""

    def call() -> None:
        args = [randn(2, 3, 26), randn(20), randn(9, 3, 2), randn(2, 9, 26), torch.tensor([6, 0])]
        for index, value in changes.items():
            args[index] = value
        ops.rope_append_(*args)

    return call


LONG = torch.zeros(3, dtype=torch.long)
CASES: dict[str, tuple[str, Callable]] = {
    "norm width": (r"x \(5, 97\)", lambda: ops.rms_norm(randn(5, 97), randn(96))),
    "norm weight": ("weight", lambda: ops.rms_norm(randn(5, 97), randn(1, 97))),
    "residual": (r"residual \(4, 97\)", lambda: ops.rms_norm_add(randn(5, 97), randn(4, 97), randn(97))),
    "logits": ("logits", lambda: ops.moe_route(randn(2, 5, 3), None, 1)),
    "k is 0": ("k=0", lambda: ops.moe_route(randn(2, 5), None, 0)),
    "k above E": ("k=6.*5", lambda: ops.moe_route(randn(2, 5), None, 6)),
    "bias": (r"bias \(4,\)", lambda: ops.moe_route(randn(2, 5), randn(4), 1)),
    "experts x": ("x ", expert_call({0: randn(1, 7, 13)})),
    "experts ids": ("ids", expert_call({1: torch.zeros(6, 2, dtype=torch.int32)})),
    "experts weights": ("weights", expert_call({2: randn(7, 3)})),
    "experts gate_up": ("gate_up", expert_call({3: randn(5, 2, 11, 12)})),
    "experts gate_up parts": ("gate_up", expert_call({3: randn(5, 3, 11, 13)})),
    "experts down": ("down", expert_call({4: randn(5, 13, 12)})),
    "form": ("form='fast'.*absorbed", attend(form="fast")),
    "q_nope": ("q_nope", attend({0: randn(2, 3, 39)})),
    "q_rope": ("q_rope", attend({1: randn(2, 4, 3, 6)})),
    "latent": ("latent", attend({2: randn(2, 8, 37)})),
    "latent batch": ("latent", attend({2: randn(1, 9, 37), 3: randn(1, 9, 6)})),
    "k_rope": ("k_rope", attend({3: randn(2, 9, 8)})),
    "w_uk": ("w_uk", attend({4: randn(3, 12, 37)})),
    "w_uv": ("w_uv", attend({5: randn(2, 17, 37)})),
    "seq_lens count": ("seq_lens", attend(seq_lens=LONG)),
    "seq_lens dtype": ("seq_lens.*float32", attend(seq_lens=torch.ones(2))),
    "block_table": ("block_table", attend(block_table=LONG[None], seq_lens=LONG[:2])),
    "block_table alone": ("seq_lens", attend(block_table=LONG[:2, None])),
    "append down": ("down", append({0: randn(3, 26)})),
    "append weight": ("weight", append({1: randn(27)})),
    "append table": ("cos_sin", append({2: randn(9, 2, 2)})),
    "append short table": ("cos_sin", append({2: randn(2, 3, 2)})),
    "append rows": ("rows", append({3: randn(2, 9, 25)})),
    "append short rows": ("rows", append({3: randn(2, 2, 26)})),
    "append position": ("position", append({4: LONG})),
    "append position dtype": ("position.*float32", append({4: torch.zeros(2)})),
    "h": ("h ", step({0: randn(1, 5, 97)})),
    "e": ("e ", step({1: randn(4, 97)})),
    "block_out": ("block_out", step({2: randn(5, 96)})),
    "h_out": ("h_out", step({3: randn(5, 96)})),
    "h_out dtype": ("h_out.*float32", step({3: randn(5, 97, dtype=torch.bfloat16)})),
    "cum_p": ("cum_p", step({4: randn(4)})),
    "cum_p dtype": ("cum_p", step({4: randn(5).double()})),
    "A": ("A ", step({5: randn(96)})),
    "lora_b": ("lora_b", step({9: randn(4, 97)})),
    "lora_scale": ("lora_scale", step({8: randn(4, 2)})),
    "halt_b": ("halt_b", step({11: randn(2)})),
    "norm_w": ("norm_w", step({12: randn(96)})),
    "t": ("t=-1", step({13: -1})),
    "t shape": ("t ", step({13: torch.zeros(4, dtype=torch.int32)})),
    "t dtype": ("t .*float32", step({13: torch.zeros(5)})),
    "no x_next": ("x_next", step({}, in_place=True, x_next=None)),
    "x_next without norm_w": ("x_next", step({12: None}, in_place=True, x_next=randn(5, 97))),
    "x_next shape": ("x_next", step({}, in_place=True, x_next=randn(5, 96))),
    "backend name": ("backend|name='fast'", lambda: ops.rms_norm(randn(5, 97), randn(97), backend="fast")),
}


@pytest.mark.parametrize("name", CASES)
def test_names_the_argument(name: str) -> None:
    message, call = CASES[name]
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        call()


def test_in_place_refusal_leaves_the_state_alone() -> None:
    args = step_args(5, 97, 3, 2)
    before = [part.clone() for part in args[:5]]
    with torch.no_grad(), pytest.raises(ValueError, match="x_next"):
        ops.loop_step_(*args[:5], LoopParams(*args[5:13]), 2, x_next=randn(4, 97), threshold=0.9, loop_dim=12)
    assert all(torch.equal(a, b) for a, b in zip(before, args, strict=False))


def test_a_backend_that_cannot_serve_raises() -> None:
    with torch.no_grad(), pytest.raises(openmythos.BackendError, match=r"cpp.*rms_norm.*float16"):
        ops.rms_norm(randn(5, 97, dtype=torch.float16), randn(97, dtype=torch.float16), backend="cpp")
