"""Lines through measured costs, and where they break."""

from __future__ import annotations

import pytest

from bench.fit import fit


def test_points_on_a_line() -> None:
    x = [1, 2, 4, 8, 16]
    line = fit(x, [3 + 0.5 * value for value in x])
    assert (line.fixed, line.each) == (pytest.approx(3), pytest.approx(0.5))
    assert (line.until, line.breaks) == (16, None)
    assert line.worst < 1e-9
    assert line.at(10) == pytest.approx(8)


def test_a_knee_is_found_where_it_is() -> None:
    """Flat until 32, then proportional, like a batch that is first memory-bound and then compute-bound."""
    x = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    line = fit(x, [max(10.0, 10.0 * value / 32) for value in x])
    assert line.breaks == 64
    assert line.until == 32
    assert line.fixed == pytest.approx(10)
    assert line.each == pytest.approx(0, abs=1e-9)


def test_small_costs_count_as_much_as_big_ones() -> None:
    """A relative fit: one percent of noise on the biggest point must not tilt the start."""
    x = [1, 10, 100, 1000]
    line = fit(x, [2.0, 11.0, 101.0, 1011.0])
    assert line.at(1) == pytest.approx(2.0, rel=0.02)
    assert line.worst < 0.02


def test_three_points_off_a_line_say_so() -> None:
    assert fit([1, 2, 3], [1.0, 4.0, 1.0]).worst > 0.3


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [([1, 2], [1, 2], "at least 3"), ([1, 2, 3], [1, 2], "y 2"), ([1, 2, 3], [1, 0, 2], "y contains 0")],
)
def test_what_cannot_be_fitted_is_an_error(x: list[float], y: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit(x, y)
