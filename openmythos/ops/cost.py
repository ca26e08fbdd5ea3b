"""The cost of a call: bytes that have to move and FLOPs that have to be done, counted from the shapes of its tensors.

Only useful bytes count: each weight, cached row, input and output once, in its own dtype. A multiply-add counts as two
FLOPs. Statistics, masks and softmax are not counted: they are small next to the products. The counts of an op are in
openmythos/ops/<op>/cost.py; they read only shapes and dtypes, so that calls on the meta device can be counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Bytes of weights, of cached keys and values and of activations, and the number of FLOPs."""

    weights: float = 0.0
    cache: float = 0.0
    activations: float = 0.0
    flops: float = 0.0

    @property
    def bytes(self) -> float:
        """All bytes."""
        return self.weights + self.cache + self.activations

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.weights + other.weights,
            self.cache + other.cache,
            self.activations + other.activations,
            self.flops + other.flops,
        )

    def __mul__(self, times: float) -> Cost:
        return Cost(self.weights * times, self.cache * times, self.activations * times, self.flops * times)


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of costs."""
    return sum(costs, Cost())
