"""Logits and gradients equal upstream's, in float64 and float32, at every depth."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.models import tokens
from tests.tolerances import GRADIENT_LIMITS, MODEL_LIMITS, ORACLE_FLOAT64, assert_close, assert_within
from tests.upstream.oracle import gradients, pair

ATTENTION = pytest.mark.parametrize("attn_type", ["mla", "gqa"])


@ATTENTION
@pytest.mark.parametrize("n_loops", [1, 2, 3, 4, 5, 8, 17, 24])
def test_float64_logits_at_every_depth(attn_type: str, n_loops: int) -> None:
    theirs, ours = (model.double() for model in pair(attn_type, max_loop_iters=8))
    ids = tokens(2, 11)
    with torch.no_grad():
        assert_within("logits", ours(ids, n_loops=n_loops), theirs(ids, n_loops=n_loops), ORACLE_FLOAT64)


@ATTENTION
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 2), (3, 7), (2, 40)])
def test_float32_logits(attn_type: str, batch: int, length: int, grad: bool) -> None:
    theirs, ours = pair(attn_type)
    exact = copy.deepcopy(theirs).double()
    ids = tokens(batch, length)
    with torch.no_grad():
        want, plain = exact(ids), theirs(ids)
    with torch.set_grad_enabled(grad):
        found = ours(ids)
    assert found.dtype == torch.float32
    assert_close("logits", found, want, plain, torch.float32, limits=MODEL_LIMITS)
    assert_within("logits against upstream float32", found, plain, 1e-4)


@ATTENTION
@pytest.mark.parametrize(
    "changes",
    [
        {"n_heads": 24, "n_kv_heads": 4, "dim": 96, "q_lora_rank": 47},
        {"n_shared_experts": 0},
        {"n_experts_per_tok": 1, "n_experts": 1},
        {"n_experts_per_tok": 5},
        {"n_experts": 13, "n_experts_per_tok": 3, "expert_dim": 97},
        {"prelude_layers": 0, "coda_layers": 0},
        {"prelude_layers": 2, "coda_layers": 3},
        {"act_threshold": 0.3},
        {"act_threshold": 1.5},
        {"dim": 56, "lora_rank": 1},
        {"dim": 60, "n_kv_heads": 3, "n_heads": 6},
        {"dim": 8, "n_heads": 2, "n_kv_heads": 1},
    ],
    ids=lambda changes: "-".join(f"{name}={value}" for name, value in changes.items()),
)
def test_configurations(attn_type: str, changes: dict) -> None:
    theirs, ours = (model.double() for model in pair(attn_type, **changes))
    ids = tokens(2, 9)
    with torch.no_grad():
        assert_within("logits", ours(ids, n_loops=5), theirs(ids, n_loops=5), ORACLE_FLOAT64)


def _loss(model: torch.nn.Module, ids: torch.Tensor, n_loops: int) -> torch.Tensor:
    logits = model(ids, n_loops=n_loops)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@ATTENTION
@pytest.mark.parametrize("n_loops", [1, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_gradient_of_every_parameter(attn_type: str, n_loops: int, dtype: torch.dtype) -> None:
    theirs, ours = pair(attn_type)
    exact = copy.deepcopy(theirs).double()
    if dtype == torch.float64:
        theirs, ours = exact, ours.double()
    ids = tokens(2, 13)
    losses = [_loss(model, ids, n_loops) for model in (ours, theirs)]
    for loss in losses:
        loss.backward()
    assert_within("loss", losses[0], losses[1], ORACLE_FLOAT64)
    found, plain = gradients(ours), gradients(theirs)
    assert found.keys() == plain.keys()
    if dtype == torch.float32:
        _loss(exact, ids, n_loops).backward()
    truth = gradients(exact)
    for name, gradient in found.items():
        if dtype == torch.float64:
            assert_within(f"gradient of {name}", gradient, truth[name], 10 * ORACLE_FLOAT64)
        else:
            assert_close(f"gradient of {name}", gradient, truth[name], plain[name], dtype, limits=GRADIENT_LIMITS)


@ATTENTION
def test_gradient_checkpointing_gives_the_same_gradients(attn_type: str) -> None:
    from torch.utils.checkpoint import checkpoint

    theirs, ours = pair(attn_type)
    ids = tokens(2, 9)
    for model in (theirs, ours):
        block = model.recurrent.block
        original = block.forward
        block.forward = lambda *args, original=original: checkpoint(original, *args, use_reentrant=False)
        _loss(model, ids, 3).backward()
    found, want = gradients(ours), gradients(theirs)
    for name in want:
        assert_within(name, found[name], want[name], 1e-4)
