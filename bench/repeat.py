"""How much quoted ratios move between two runs.

python -m bench.repeat                     runs the quoted cases twice and writes bench/results/<device>/repeat.md
python -m bench.repeat old.json new.json   compares two recorded runs
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from bench.quoted import HEADLINES, QUOTED, short
from bench.report import load
from openmythos.roofline import device_name

ROOT = Path(__file__).resolve().parent.parent
# percent that a quoted ratio may move on an idle machine
PROMISE = 5.0


class Move(NamedTuple):
    """One ratio of a case in both runs, and by how much it moved."""

    case: str
    over: str
    old: float
    new: float
    percent: float


def ratios(recorded: dict[str, Any]) -> dict[tuple[str, str], float]:
    """{(quoted case, what it is compared with): ratio} of one run: every baseline, and the floor."""
    found: dict[tuple[str, str], float] = {}
    for entry in recorded["benchmarks"]:
        name, info = short(entry["fullname"]), entry["extra_info"]
        if name in QUOTED:
            found |= {
                (name, baseline): record["ratio"]
                for baseline, record in info["baselines"].items()
                if "ratio" in record
            }
            if "fraction_of_floor" in info:
                found[name, "the floor"] = info["fraction_of_floor"]
    return found


def moves(old: dict[str, Any], new: dict[str, Any]) -> list[Move]:
    """The ratios that both runs have, the largest move first."""
    before, after = ratios(old), ratios(new)
    both = [
        Move(*key, before[key], after[key], 100 * (after[key] / before[key] - 1)) for key in before if key in after
    ]
    return sorted(both, key=lambda move: -abs(move.percent))


def _table(found: list[Move]) -> list[str]:
    lines = ["| case | over | first run | second run | moved |", "| --- | --- | ---: | ---: | ---: |"]
    lines += [f"| {m.case} | {m.over} | {m.old:.3g}x | {m.new:.3g}x | {m.percent:+.1f}% |" for m in found]
    return lines


def markdown(found: list[Move]) -> str:
    """Both tables, and the number of headline ratios within the limit."""
    alone = [move for move in found if move.case in HEADLINES]
    kept = sum(abs(move.percent) <= PROMISE for move in alone)
    lines = ["# Quoted ratios in two runs, one after the other", "", "Reproduce with `make bench-repeat`.", ""]
    lines += [f"Headlines: {kept} of {len(alone)} ratios moved by {PROMISE:g}% or less.", "", *_table(alone)]
    rest = [move for move in found if move.case not in HEADLINES]
    lines += ["", "Quoted as ranges:", "", *_table(rest)]
    return "\n".join(lines) + "\n"


def _run(out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "bench", "-m", "quoted", f"--benchmark-json={out}"]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if status:
        raise SystemExit(f"the benchmarks failed (exit status {status})")
    return load(out)


def main(argv: list[str] | None = None) -> int:
    """Compare and print; write the result of runs made now. 1 when there is nothing to compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="two recorded runs (default: run the quoted cases twice)")
    args = parser.parse_args(argv)
    if len(args.files) not in (0, 2):
        parser.error("give two recorded runs, or none")
    if args.files:
        found = moves(*map(load, args.files))
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = moves(*[_run(Path(folder) / f"{turn}.json") for turn in range(2)])
        target = ROOT / "bench" / "results" / device_name() / "repeat.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(markdown(found), encoding="utf-8")
    print(markdown(found))
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
