"""bench.compare: a planted slowdown is caught, and a faster machine is not mistaken for faster code."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest

from bench.compare import changes, costs, main, slower


def entry(name: str, ms: float, fraction: float | None = None) -> dict:
    info = {"wall_ms": ms, "baselines": {}}
    if fraction is not None:
        info["fraction_of_floor"] = fraction
    return {"fullname": f"bench/bench_moe.py::bench_decode[{name}]", "extra_info": info}


def recorded(*entries: dict) -> dict:
    return {"benchmarks": list(entries), "machine_info": {}, "commit_info": {}}


BASE = recorded(entry("1b", 10.0, 0.9), entry("3b", 30.0, 0.8), entry("bare", 5.0))


def written(folder: Path, name: str, run: dict) -> str:
    (folder / name).write_text(json.dumps(run))
    return str(folder / name)


def planted(by: float) -> dict:
    """BASE with one case slower by a factor."""
    run = copy.deepcopy(BASE)
    run["benchmarks"][1]["extra_info"]["fraction_of_floor"] /= by
    run["benchmarks"][1]["extra_info"]["wall_ms"] *= by
    return run


def test_fifteen_percent_in_recorded_json_is_caught(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = written(tmp_path, "old.json", BASE), written(tmp_path, "new.json", planted(1.15))
    assert main([*files]) == 1
    text = capsys.readouterr().out
    assert "1.150x" in text
    assert "1 of 3 cases take more than 10% longer" in text


def test_the_same_run_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = written(tmp_path, "old.json", BASE), written(tmp_path, "new.json", BASE)
    assert main([*files]) == 0
    assert "0 of 3 cases" in capsys.readouterr().out


def test_the_threshold_is_a_percentage(tmp_path: Path) -> None:
    files = written(tmp_path, "old.json", BASE), written(tmp_path, "new.json", planted(1.15))
    assert main([*files, "--threshold", "20"]) == 0
    assert main([*files, "--threshold", "14"]) == 1


def test_a_machine_that_is_slower_as_a_whole_is_no_regression() -> None:
    """Everything takes twice as long, including the machine's stream and product: fractions stay the same."""
    run = copy.deepcopy(BASE)
    for one in run["benchmarks"][:2]:
        one["extra_info"]["wall_ms"] *= 2
    found, alone = changes([BASE], [run])
    assert not slower(found, 10)
    assert not alone


def test_runs_of_one_side_are_a_median() -> None:
    runs = [recorded(entry("bare", ms)) for ms in (5.0, 50.0, 6.0)]
    (found,) = costs(runs).values()
    assert (found.value, found.unit) == (6.0, "ms")


def test_runs_that_differ_widen_the_interval() -> None:
    """8 and 12 ms are 10 with an error of 20%; a single 13 ms has the error of its own rounds."""
    quiet = recorded(entry("bare", 13.0))
    quiet["benchmarks"][0]["extra_info"] |= {"spread": 0.1, "rounds": 25}
    found, _ = changes([recorded(entry("bare", ms)) for ms in (8.0, 12.0)], [quiet])
    width = math.exp(1.96 * math.hypot(0.2, 0.93 * 0.1 / 5))
    assert found[0][3:6] == pytest.approx((1.3, 1.3 / width, 1.3 * width))
    assert not slower(found, 10)


def test_cases_of_one_side_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = recorded(*BASE["benchmarks"], entry("10b", 1.0))
    assert main([written(tmp_path, "old.json", BASE), written(tmp_path, "new.json", extra)]) == 0
    assert "Only one side has: moe decode[10b]" in capsys.readouterr().out


def test_nothing_to_compare_fails(tmp_path: Path) -> None:
    assert main([written(tmp_path, "old.json", recorded()), written(tmp_path, "new.json", BASE)]) == 1


@pytest.mark.parametrize("arguments", [[], ["one.json"], ["a.json", "b.json", "--base", "HEAD"]], ids=" ".join)
def test_bad_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert "give two recorded runs, or --base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "No such file"), ("{", "not JSON"), ("{}", "holds no benchmarks")],
    ids=["missing", "damaged", "something else"],
)
def test_bad_files_are_named(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "run.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SystemExit, match=words):
        main([str(file), str(file)])


def test_an_unknown_revision_is_named() -> None:
    with pytest.raises(SystemExit, match="--base no-such-revision"):
        main(["--base", "no-such-revision"])
