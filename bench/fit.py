"""Straight lines through measured costs, and where the measurements leave them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# a point this far from the line of the points before it is where the line breaks
TOLERANCE = 0.15
# so many points make a line
LEAST = 3


class Line(NamedTuple):
    """cost = fixed + each * x for x up to `until`; `breaks` is the first x off the line, None when none is.

    `worst` is the largest relative distance of the line's own points from it.
    """

    fixed: float
    each: float
    until: float
    breaks: float | None
    worst: float

    def at(self, x: float) -> float:
        """The line's value."""
        return self.fixed + self.each * x


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Least squares of the relative error, so that small costs count as much as big ones."""
    weights = 1 / np.asarray(y)
    columns = np.stack([weights, weights * np.asarray(x)], axis=1)
    fixed, each = np.linalg.lstsq(columns, np.ones(len(y)), rcond=None)[0]
    return float(fixed), float(each)


def fit(x: Sequence[float], y: Sequence[float]) -> Line:
    """The line through the first points, extended as long as the next point is within TOLERANCE of it.

    Raises:
        ValueError: for fewer than three points, or costs that are not positive.
    """
    if len(x) != len(y) or len(x) < LEAST:
        raise ValueError(f"x has {len(x)} points, y {len(y)}: at least {LEAST} of both are needed")
    if min(y) <= 0:
        raise ValueError(f"y holds {min(y)}: costs must be positive")
    for taken in range(LEAST, len(x)):
        fixed, each = _line(x[:taken], y[:taken])
        if abs(y[taken] - (fixed + each * x[taken])) > TOLERANCE * y[taken]:
            return _described(fixed, each, x[:taken], y[:taken], x[taken])
    return _described(*_line(x, y), x, y, None)


def _described(fixed: float, each: float, x: Sequence[float], y: Sequence[float], breaks: float | None) -> Line:
    worst = max(abs(cost - (fixed + each * value)) / cost for value, cost in zip(x, y, strict=True))
    return Line(fixed, each, x[-1], breaks, worst)
