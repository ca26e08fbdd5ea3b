"""Observing a forward: routing counts, and the number of loops that ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass
class Observation:
    """Filled by every forward inside `observe`.

    expert_counts: for each loop, int32 (E), the number of rows that each routed expert served. They stay on the
    model's device and have no gradient. loops: for each forward, the number of loops that ran.
    """

    expert_counts: list[torch.Tensor] = field(default_factory=list)
    loops: list[int] = field(default_factory=list)


@contextmanager
def observe(model: nn.Module) -> Iterator[Observation]:
    """Collect routing counts and loops of every forward of `model` in the block, compiled ones included.

        with openmythos.observe(model) as seen:
            logits = model(ids)
        load = torch.stack(seen.expert_counts).sum(0)

    Meant for load balancing (a step on `router_bias`) and for a ponder cost. Logits, signatures and hooks stay
    unchanged. A replayed graph (graph=True) is observed once, when it is captured.
    """
    seen = Observation()
    observed = [module for module in model.modules() if hasattr(type(module), "observation")]
    outer = [module.observation for module in observed]
    for module in observed:
        module.observation = seen
    try:
        yield seen
    finally:
        for module, before in zip(observed, outer, strict=True):
            del module.observation
            if before is not None:
                module.observation = before
