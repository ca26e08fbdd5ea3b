"""Charts of the reports: bars against the floor, and cost over loops, cache, batch and experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from bench.fit import Line
from bench.quoted import short

BAR, LINE, POINT, THEIRS = "#3b6ea5", "#b0b0b0", "#3b6ea5", "#c8553d"


def bars(recorded: dict[str, Any], file: Path) -> None:
    """One bar for each case, the fraction of its floor that it reaches; baselines as marks."""
    cases = [entry for entry in recorded["benchmarks"] if "fraction_of_floor" in entry["extra_info"]]
    figure, axes = plt.subplots(figsize=(9, 0.24 * len(cases) + 1.2), layout="constrained")
    names = [short(entry["fullname"]) for entry in cases]
    axes.barh(names, [entry["extra_info"]["fraction_of_floor"] for entry in cases], color=BAR, label="openmythos")
    marks = [
        (entry["extra_info"]["fraction_of_floor"] / baseline["ratio"], name)
        for name, entry in zip(names, cases, strict=True)
        for baseline in entry["extra_info"]["baselines"].values()
        if "ratio" in baseline
    ]
    axes.plot(*zip(*marks, strict=True), "|", color=THEIRS, markersize=9, markeredgewidth=2, label="baselines")
    axes.axvline(1, color=LINE, linewidth=1)
    axes.set_xlabel("fraction of the floor measured in the same rounds (stream or matrix product)")
    axes.set_xlim(0)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


def curves(series: dict[str, dict[str, Any]], lines: dict[str, Line], file: Path) -> None:
    """One panel for each series: measured points, the line through them, where it ends, upstream's points."""
    columns = 2
    rows = -(-len(series) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(10, 3.2 * rows), layout="constrained", squeeze=False)
    for axes, (name, one) in zip(grid.flat, series.items(), strict=False):
        x = one["x"]
        axes.plot(x, one["ms"], "o", color=POINT, label="openmythos")
        if one.get("upstream"):
            axes.plot(*zip(*one["upstream"], strict=True), "s", color=THEIRS, label="upstream, float32")
        if name in lines:
            line = lines[name]
            axes.plot(x, [line.at(value) for value in x], "-", color=LINE, label=f"line up to {line.until:g}")
            if line.breaks is not None:
                axes.axvline(line.breaks, color=LINE, linestyle=":", label=f"deviates at {line.breaks:g}")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(one["unit"])
        axes.set_ylabel("ms")
        axes.legend(fontsize=7, frameon=False)
    for axes in list(grid.flat)[len(series) :]:
        axes.set_visible(False)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)
