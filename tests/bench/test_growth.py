"""Growth curves: the points of a series are interleaved, and the report names the point where a line ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.growth import Series, lines_of, markdown


def measured() -> dict:
    return {
        "decode, by sequences": {
            "unit": "sequences",
            "x": [1, 2, 4, 8, 16],
            "ms": [10.0, 10.1, 10.0, 20.0, 40.0],
            "peak_bytes": [None, 1, 2, 3, 4],
            "cache_bytes": [1_000_000, 2_000_000, 4_000_000, 8_000_000, 16_000_000],
            "histograms": [None, None, None, None, [0, 3, 61]],
            "upstream": [(1, 80.0)],
        }
    }


def test_report_names_the_break_and_upstream() -> None:
    text = markdown("toy", measured(), lines_of(measured()))
    assert "| 1 | 10.00 | 80.0 |  | 1.0 |  |" in text
    assert "positions that halt after 1, 2, ... loops: [0, 3, 61]" in text
    assert "8 deviates by more than 15%" in text


def test_points_take_turns() -> None:
    order = []
    series = Series("toy", "loops", {x: lambda x=x: order.append(x) for x in (1, 2, 4)})
    series.upstream = {1: lambda: order.append("upstream")}
    found = series.measure(5, lambda _text: None)
    rounds = order[4:]
    assert rounds[:4] == [1, 2, 4, "upstream"]
    assert rounds.count("upstream") == 3
    assert found["x"] == [1, 2, 4]
    assert len(found["ms"]) == 3


@pytest.mark.slow
def test_all_series_of_a_tiny_model(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.growth", "--smoke", "--rounds", "2", "--out", str(tmp_path)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    series = json.loads((tmp_path / "growth.json").read_text())["series"]
    assert len(series) == 6
    for one in series.values():
        assert all(ms > 0 for ms in one["ms"])
        assert one["upstream"], one["unit"]
    histograms = series["early exit without a cache"]["histograms"]
    assert all(sum(histogram) == 64 and histogram[-1] > 0 for histogram in histograms)
    assert (tmp_path / "growth.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_halting_steps_are_those_of_the_formula() -> None:
    """A bias of 6 halts everything after one loop; each loop of p near one half halts after two."""
    from bench.growth import Models, _halting_steps

    models = Models(smoke=True, device=torch.device("cpu"))
    with torch.no_grad():
        assert _halting_steps(models, models.ids(1, 16), 6.0).tolist() == [1] * 16
        slow = _halting_steps(models, models.ids(1, 16), -3.0)
    assert slow.max() == models.cfg.max_loop_iters
