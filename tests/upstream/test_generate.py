"""generate() draws upstream's tokens for the same seed."""

from __future__ import annotations

import pytest
import torch

from tests.models import tokens
from tests.upstream.oracle import pair

ATTENTION = pytest.mark.parametrize("attn_type", ["mla", "gqa"])


@ATTENTION
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_loops": 3, "temperature": 0.7, "top_k": 5},
        {"n_loops": 6, "temperature": 1.3, "top_k": 0},
        {"top_k": 101},
        {"top_k": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 3])
def test_equal_tokens_given_a_seed(attn_type: str, options: dict, batch: int) -> None:
    theirs, ours = pair(attn_type)
    ids = tokens(batch, 9)
    drawn = []
    for model in (theirs, ours):
        torch.manual_seed(11)
        drawn.append(model.generate(ids, max_new_tokens=20, **options))
    assert torch.equal(drawn[1], drawn[0])
    assert drawn[1].shape == (batch, 29)


def test_positional_arguments_as_upstream() -> None:
    theirs, ours = pair("mla")
    drawn = []
    for model in (theirs, ours):
        torch.manual_seed(2)
        drawn.append(model.generate(tokens(1, 4), 6, 2, 0.9, 10))
    assert torch.equal(drawn[1], drawn[0])
