"""bench.repeat: quoted ratios of two runs, how far each moved; every quoted case is a benchmark."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.quoted import QUOTED, short
from bench.repeat import ROOT, main, moves, ratios

CASE, QUIET = "bench/bench_model.py::bench_decode[float32]", "bench/bench_linear.py::bench_linear[float32-1-2048]"


def run(baseline: float, floor: float, node: str = CASE) -> dict:
    baselines = {"upstream": {"ratio": baseline}, "FlashMLA": {"unavailable": "needs a GPU"}}
    return {"benchmarks": [{"fullname": node, "extra_info": {"baselines": baselines, "fraction_of_floor": floor}}]}


def test_ratios_are_those_over_baselines_and_the_floor() -> None:
    case = "model decode[float32]"
    assert ratios(run(1.5, 0.8)) == {(case, "upstream"): 1.5, (case, "the floor"): 0.8}


def test_other_cases_are_not_quoted() -> None:
    assert not ratios(run(1.5, 0.8, QUIET))


def test_the_largest_move_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for name, recorded in (("old", run(1.5, 0.8)), ("new", run(1.53, 0.72))):
        files.append(str(tmp_path / f"{name}.json"))
        Path(files[-1]).write_text(json.dumps(recorded))
    assert main(files) == 0
    text = capsys.readouterr().out
    assert "Headlines: 1 of 2 ratios moved by 5% or less" in text
    rows = [line for line in text.splitlines() if line.startswith("| model")]
    assert rows == [
        "| model decode[float32] | the floor | 0.8x | 0.72x | -10.0% |",
        "| model decode[float32] | upstream | 1.5x | 1.53x | +2.0% |",
    ]


def test_what_one_run_lacks_is_left_out() -> None:
    lacking = copy.deepcopy(run(1.5, 0.8))
    del lacking["benchmarks"][0]["extra_info"]["baselines"]["upstream"]
    assert [move.over for move in moves(run(1.5, 0.8), lacking)] == ["the floor"]


def test_nothing_in_common_fails(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"benchmarks": []}))
    assert main([str(file), str(file)]) == 1


def test_one_file_is_no_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["one.json"])
    assert "give two recorded runs, or none" in capsys.readouterr().err


def test_every_quoted_case_is_a_benchmark() -> None:
    command = [sys.executable, "-m", "pytest", "bench", "-m", "quoted", "--collect-only"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert sorted(short(line) for line in listed.splitlines() if "::" in line) == sorted(QUOTED)
