"""Straight lines through measured costs, and where the measurements deviate from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# a line ends before a point that deviates by more than this
TOLERANCE = 0.15
MIN_POINTS = 3


class Line(NamedTuple):
    """cost = fixed + each * x for x up to `until`; `breaks` is the first x off the line, or None.

    `worst` is the largest relative deviation of the points on the line.
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
    """The line through the first points, extended while the next point is within TOLERANCE of it.

    Raises:
        ValueError: for fewer than three points, or costs that are not positive.
    """
    if len(x) != len(y) or len(x) < MIN_POINTS:
        raise ValueError(f"x has {len(x)} points, y {len(y)}: both need at least {MIN_POINTS}")
    if min(y) <= 0:
        raise ValueError(f"y contains {min(y)}: costs must be positive")
    for taken in range(MIN_POINTS, len(x)):
        fixed, each = _line(x[:taken], y[:taken])
        if abs(y[taken] - (fixed + each * x[taken])) > TOLERANCE * y[taken]:
            return _described(fixed, each, x[:taken], y[:taken], x[taken])
    return _described(*_line(x, y), x, y, None)


def _described(fixed: float, each: float, x: Sequence[float], y: Sequence[float], breaks: float | None) -> Line:
    worst = max(abs(cost - (fixed + each * value)) / cost for value, cost in zip(x, y, strict=True))
    return Line(fixed, each, x[-1], breaks, worst)
