"""Drawing the next token: temperature and top-k."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def sample(
    logits: torch.Tensor, temperature: float = 1.0, top_k: int = 50, generator: torch.Generator | None = None
) -> torch.Tensor:
    """One token per row from softmax(logits / temperature) over the top_k (0: all). logits (B, V) -> (B, 1).

    temperature 0 takes the largest logit; top_k above V means all; ties with the k-th logit are kept.
    """
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits.float() / temperature
    if top_k > 0:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    return torch.multinomial(F.softmax(logits, dim=-1), num_samples=1, generator=generator)
