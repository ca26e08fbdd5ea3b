"""How far the logits of two models differ."""

from __future__ import annotations

from typing import NamedTuple

import torch

CLEAR_MARGIN = 0.3


class Agreement(NamedTuple):
    """Against the baseline's logits: relative error, share of equal argmax, and mean KL divergence in nats.

    `argmax_clear`: the share among positions where the two best logits of the baseline differ by more than
    CLEAR_MARGIN, or None when there are none.
    """

    error: float
    argmax: float
    argmax_clear: float | None
    kl: float


def agreement(logits: torch.Tensor, baseline: torch.Tensor) -> Agreement:
    """Compare logits with the baseline's, both (positions, V), row by row in float64."""
    squares = baseline_squares = divergence = 0.0
    equal, clear = [], []
    for row, expected in zip(logits, baseline, strict=True):
        row, expected = row.double(), expected.double()
        squares += float((row - expected).square().sum())
        baseline_squares += float(expected.square().sum())
        log_p, log_q = expected.log_softmax(0), row.log_softmax(0)
        divergence += float((log_p.exp() * (log_p - log_q)).sum())
        best = expected.topk(2).values
        equal.append(bool(row.argmax() == expected.argmax()))
        clear.append(bool(best[0] - best[1] > CLEAR_MARGIN))
    sure = [same for same, distinct in zip(equal, clear, strict=True) if distinct]
    return Agreement(
        error=(squares / baseline_squares) ** 0.5,
        argmax=sum(equal) / len(equal),
        argmax_clear=sum(sure) / len(sure) if sure else None,
        kl=divergence / len(equal),
    )
