"""Reports: tables, pictures and the fractions that `openmythos plan` reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import report
from bench.plots import bars
from bench.quoted import short

INFO = {
    "error": 1e-3,
    "bytes": 1e9,
    "flops": 2e9,
    "wall_ms": 20.0,
    "spread": 0.02,
    "gb_per_s": 50.0,
    "tflop_per_s": 0.1,
    "fraction_of_stream": 0.9,
    "fraction_of_floor": 0.9,
    "tokens_per_s": 50.0,
    "peak_bytes": 1_500_000,
    "baselines": {
        "upstream": {"ratio": 4.5, "low": 4.4, "high": 4.7, "error": 1e-6},
        "grouped_mm": {"unavailable": "needs a GPU"},
    },
}


def recorded(**changes: object) -> dict:
    return {
        "machine_info": {"device": "toy", "torch": "2.13", "python": "3.11", "threads": 2, "isa": "avx2"},
        "commit_info": {"id": "0123456789abcdef"},
        "benchmarks": [
            {"fullname": "bench/bench_model.py::bench_decode[bfloat16]", "extra_info": INFO | changes},
            {"fullname": "bench/bench_moe.py::bench_decode[1b-bfloat16]", "extra_info": INFO},
        ],
    }


def test_names_are_short() -> None:
    assert [short(entry["fullname"]) for entry in recorded()["benchmarks"]] == [
        "model decode[bfloat16]",
        "moe decode[1b-bfloat16]",
    ]


def test_tables_hold_every_number_and_reason() -> None:
    text = report.markdown(recorded())
    row = next(line for line in text.splitlines() if line.startswith("| decode[bfloat16] | 20 "))
    assert row == "| decode[bfloat16] | 20 | 2.0% | 50 | 100 | 90.0% |  | 50 | 1.5 | 1.0e-03 |"
    assert "| decode[bfloat16] | upstream | 4.50x (4.40 to 4.70) | |" in text
    assert "| decode[bfloat16] | grouped_mm | | needs a GPU |" in text
    assert text.index("## model") < text.index("## moe")


def test_device_time_goes_before_wall_time() -> None:
    assert "| decode[bfloat16] | 12 |" in report.markdown(recorded(device_ms=12.0))


def test_fractions_are_kept_by_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "fractions.json"
    file.write_text(json.dumps({"other": {"decode": {"float32": 0.7}}}))
    monkeypatch.setattr(report, "FILE", file)
    report.store_fractions(recorded(fraction_of_floor=0.8765))
    assert json.loads(file.read_text()) == {
        "other": {"decode": {"float32": 0.7}},
        "toy": {"decode": {"bfloat16": 0.876}},
    }


def test_bars_are_drawn(tmp_path: Path) -> None:
    bars(recorded(), tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_the_kept_fractions_are_those_of_the_kept_results() -> None:
    results = Path(report.__file__).parent / "results"
    kept = json.loads(report.FILE.read_text())
    for file in results.glob("*/bench.json"):
        run = json.loads(file.read_text())
        if run["benchmarks"][0]["extra_info"].get("fraction_of_floor") is None:
            continue
        found = report.fractions(run)
        if found:
            assert kept[run["machine_info"]["device"]] == found, file.parent.name
