"""Training: the loss curve of a few steps, and dropout drawn in upstream's order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.models import tokens
from tests.tolerances import ORACLE_FLOAT64, assert_within
from tests.upstream.oracle import pair

ATTENTION = pytest.mark.parametrize("attn_type", ["mla", "gqa"])


def _curve(model: torch.nn.Module, dropout_seed: int | None = None) -> torch.Tensor:
    # Adam would turn a gradient that is only rounding error into a full step.
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(12):
        ids = tokens(2, 16, seed=step % 3)
        if dropout_seed is not None:
            torch.manual_seed(dropout_seed + step)
        logits = model(ids, n_loops=3)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@ATTENTION
def test_loss_curve(attn_type: str) -> None:
    theirs, ours = (model.double().train() for model in pair(attn_type))
    want, found = _curve(theirs), _curve(ours)
    assert want[-1] < want[0]
    assert_within("losses", found, want, 1e-5)


@ATTENTION
def test_dropout_with_equal_seeds(attn_type: str) -> None:
    theirs, ours = (model.double().train() for model in pair(attn_type, dropout=0.3))
    ids = tokens(2, 11)
    outputs = []
    for model in (theirs, ours):
        torch.manual_seed(17)
        outputs.append(model(ids, n_loops=3))
    with torch.no_grad():
        quiet = ours.eval()(ids, n_loops=3)
    assert_within("logits", outputs[1], outputs[0], ORACLE_FLOAT64)
    assert (quiet - outputs[1]).abs().max() > 1e-2, "dropout did something"


@ATTENTION
def test_loss_curve_with_dropout(attn_type: str) -> None:
    theirs, ours = (model.double().train() for model in pair(attn_type, dropout=0.1))
    assert_within("losses", _curve(ours, 100), _curve(theirs, 100), 1e-4)
