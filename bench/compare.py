"""Compare benchmarks: two recorded runs, or this tree with another revision that is built and run in turn.

    python -m bench.compare old.json new.json
    python -m bench.compare --base HEAD~3 [--threshold 10] [--only bench_moe.py] [--plant-slowdown 1.15]

Each revision runs its own benchmarks, and cases are matched by name. A case with a ceiling (a stream, a matrix
product) is compared by its time relative to the ceiling's in the same rounds, so that a change of the machine's speed
between runs cancels out; other cases are compared by their time. A case is slower if the 95% interval of its ratio is
entirely above the threshold.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from bench.quoted import short
from bench.report import load, milliseconds

ROOT = Path(__file__).resolve().parent.parent
THRESHOLD_PERCENT = 10.0
# base, head, head, base: a drift of the machine affects both sides equally
ORDER = ("base", "head", "head", "base")


class Measured(NamedTuple):
    """The cost of a case in multiples of its floor or in ms, its relative standard error, and the unit."""

    value: float
    error: float
    unit: str


class Change(NamedTuple):
    """One case: its cost on both sides, the ratio head / base and its 95% interval."""

    name: str
    base: float
    head: float
    ratio: float
    low: float
    high: float
    unit: str


def cost(info: dict[str, Any]) -> Measured:
    """The cost of a case in one run: its time over its floor in the same rounds, or milliseconds."""
    # the standard error of a median of normal samples, from the interquartile range
    error = 0.93 * info.get("spread", 0.0) / math.sqrt(info.get("rounds", 1))
    if info.get("fraction_of_floor"):
        return Measured(1 / info["fraction_of_floor"], error, "x floor")
    return Measured(milliseconds(info), error, "ms")


def costs(runs: list[dict[str, Any]]) -> dict[str, Measured]:
    """The median cost of each case over several runs of one revision."""
    found: dict[str, list[Measured]] = {}
    for recorded in runs:
        for entry in recorded["benchmarks"]:
            found.setdefault(short(entry["fullname"]), []).append(cost(entry["extra_info"]))
    return {name: _combined(parts) for name, parts in found.items()}


def _combined(parts: list[Measured]) -> Measured:
    """Several runs combined; the error is the larger of those within and between the runs."""
    values, count = [part.value for part in parts], len(parts)
    value = statistics.median(values)
    within = math.sqrt(sum(part.error**2 for part in parts)) / count
    between = statistics.stdev(values) / value / math.sqrt(count) if count > 1 else 0.0
    return Measured(value, max(within, between), parts[0].unit)


def changes(base: list[dict[str, Any]], head: list[dict[str, Any]]) -> tuple[list[Change], list[str]]:
    """The cases of both sides, the largest slowdown first, and the names of cases that only one side has."""
    old, new = costs(base), costs(head)
    both = [name for name in old if name in new and old[name].unit == new[name].unit]
    found = [_change(name, old[name], new[name]) for name in both]
    return sorted(found, key=lambda change: -change.ratio), sorted(old.keys() ^ new.keys())


def _change(name: str, old: Measured, new: Measured) -> Change:
    ratio, width = new.value / old.value, math.exp(1.96 * math.hypot(old.error, new.error))
    return Change(name, old.value, new.value, ratio, ratio / width, ratio * width, new.unit)


def slower(found: list[Change], threshold: float) -> list[Change]:
    """Cases whose 95% interval is entirely above `threshold` percent."""
    return [change for change in found if change.low > 1 + threshold / 100]


def show(found: list[Change], alone: list[str], threshold: float) -> int:
    """Print the table; returns the exit status, 1 when a case is slower than the threshold allows."""
    table = Table()
    for column in ("case", "base", "head", "head takes", "95% interval"):
        table.add_column(column, justify="left" if column == "case" else "right", no_wrap=True)
    bad = slower(found, threshold)
    for change in found:
        style = "red" if change in bad else "green" if change.high < 1 - threshold / 100 else ""
        cells = [f"{change.base:.3g} {change.unit}", f"{change.head:.3g} {change.unit}", f"{change.ratio:.3f}x"]
        table.add_row(change.name, *cells, f"{change.low:.3f} to {change.high:.3f}", style=style)
    console = Console(highlight=False)
    console.print(table)
    if alone:
        console.print(f"Only one side has: {', '.join(alone)}")
    if not found:
        console.print("Nothing to compare.")
        return 1
    console.print(f"{len(bad)} of {len(found)} cases take more than {threshold:g}% longer.")
    return 1 if bad else 0


def _run(tree: Path, only: str, out: Path, slowdown: float) -> dict[str, Any]:
    """Run the benchmarks of a tree against the package in that tree."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"bench/{only}",
        f"--benchmark-json={out}",
    ]
    command += [f"--plant-slowdown={slowdown}"] if slowdown != 1 else []
    result = subprocess.run(command, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, check=False)
    if not out.exists():
        raise SystemExit(f"the benchmarks did not run in {tree} (exit status {result.returncode})")
    return load(out)


def _build(tree: Path) -> None:
    """Compile the C++ library of a tree in place, and make its Triton kernels importable from it."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{tree} does not build:\n{result.stderr[-2000:]}")
    # without the link, the kernels of the installed tree would be imported
    (tree / "openmythos" / "triton_kernels").symlink_to(tree / "triton_kernels")


def against(base: str, only: str, slowdown: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Runs of `base` and of this tree; base is checked out and built in a temporary worktree."""
    runs: dict[str, list[dict[str, Any]]] = {"base": [], "head": []}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "base"
        result = subprocess.run(
            ["git", "worktree", "add", "--detach", str(tree), base],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise SystemExit(f"--base {base}: {result.stderr.strip()}")
        try:
            print(f"Building {base}", flush=True)
            _build(tree)
            for turn, side in enumerate(ORDER):
                print(f"Run {turn + 1} of {len(ORDER)}: {side}", flush=True)
                where, planted = (tree, 1.0) if side == "base" else (ROOT, slowdown)
                runs[side].append(_run(where, only, Path(folder) / f"{turn}.json", planted))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=False)
    return runs["base"], runs["head"]


def main(argv: list[str] | None = None) -> int:
    """Compare and print; 1 when a case is slower than the threshold allows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="two recorded runs, old and new")
    parser.add_argument("--base", help="the revision to compare this tree with")
    parser.add_argument("--threshold", type=float, default=THRESHOLD_PERCENT, help="percent (default: 10)")
    parser.add_argument("--only", default="", help="one bench file (default: all)")
    parser.add_argument("--plant-slowdown", type=float, default=1.0, help="slow this tree down, as a test")
    args = parser.parse_args(argv)
    if (args.base is None and len(args.files) != 2) or (args.base is not None and args.files):
        parser.error("give two recorded runs, or --base")
    if args.base is None:
        base, head = ([load(file)] for file in args.files)
    else:
        base, head = against(args.base, args.only, args.plant_slowdown)
    return show(*changes(base, head), args.threshold)


if __name__ == "__main__":
    sys.exit(main())
