"""The report of a recorded run, Markdown tables and a chart: `python -m bench.report FOLDER`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.quoted import short
from bench.roofline import markdown as roofline
from openmythos.roofline import Machine
from openmythos.roofline.fractions import FILE, PHASES


def load(file: Path) -> dict[str, Any]:
    """A recorded run.

    Raises:
        SystemExit: naming the file, when it is missing or is no recorded run.
    """
    try:
        recorded = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SystemExit(f"{file}: {error.strerror}; run `make bench` to write it") from error
    except json.JSONDecodeError as error:
        raise SystemExit(f"{file}: not JSON ({error})") from error
    if "benchmarks" not in recorded:
        raise SystemExit(f"{file}: holds no benchmarks")
    return recorded


def milliseconds(info: dict[str, Any]) -> float:
    """Device time, or wall time where there is none."""
    return info.get("device_ms", info["wall_ms"])


def groups(entries: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Entries by bench file."""
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        found.setdefault(short(entry["fullname"]).split(" ")[0], []).append(entry)
    return found


def _cell(info: dict[str, Any], name: str, scale: float = 1, form: str = "{:.3g}") -> str:
    return form.format(info[name] * scale) if info.get(name) is not None else ""


def _case_row(entry: dict[str, Any]) -> str:
    info = entry["extra_info"]
    cells = [
        short(entry["fullname"]).split(" ", 1)[1],
        f"{milliseconds(info):.3g}",
        _cell(info, "spread", form="{:.1%}"),
        _cell(info, "gb_per_s"),
        _cell(info, "tflop_per_s", 1e3),
        _cell(info, "fraction_of_stream", form="{:.1%}"),
        _cell(info, "fraction_of_product", form="{:.1%}"),
        _cell(info, "tokens_per_s"),
        _cell(info, "peak_bytes", 1e-6),
        _cell(info, "error", form="{:.1e}"),
    ]
    return f"| {' | '.join(cells)} |"


def _baseline_rows(entries: list[dict[str, Any]]) -> list[str]:
    rows = []
    for entry in entries:
        for name, baseline in entry["extra_info"]["baselines"].items():
            if "ratio" in baseline:
                quartiles = f" ({baseline['low']:.2f} to {baseline['high']:.2f})" if "low" in baseline else ""
                ratio = f"{baseline['ratio']:.2f}x{quartiles}"
                rows.append(f"| {short(entry['fullname']).split(' ', 1)[1]} | {name} | {ratio} | |")
            else:
                rows.append(f"| {short(entry['fullname']).split(' ', 1)[1]} | {name} | | {baseline['unavailable']} |")
    return rows


def markdown(recorded: dict[str, Any]) -> str:
    """The report of one run."""
    machine = recorded["machine_info"]
    lines = [
        f"# {machine['device']}",
        "",
        f"torch {machine['torch']}, Python {machine['python']}, {machine['threads']} threads, CPU kernels for "
        f"{machine['isa']}; commit {str(recorded['commit_info']['id'])[:12]}.",
        "",
        "Times are medians of interleaved rounds; spread is the distance between the quartiles. Bytes and FLOPs count "
        "useful work only. Stream and product: the bandwidth and the best matrix product of the same rounds. "
        "Reproduce with `make bench`.",
        "",
        "![bars against the floor](report.png)",
    ]
    for name, entries in groups(recorded["benchmarks"]).items():
        lines += ["", f"## {name}", ""]
        lines.append(
            "| case | ms | spread | GB/s | GFLOP/s | of a stream | of a product | tokens/s | peak MB | error |"
        )
        lines.append("| --- " + "| ---: " * 9 + "|")
        lines += map(_case_row, entries)
        baselines = _baseline_rows(entries)
        if baselines:
            lines += [
                "",
                "| case | baseline | times as fast (quartiles) | not timed because |",
                "| --- | --- | --- | --- |",
            ]
            lines += baselines
    if "ceilings" in machine:
        found = Machine(**machine["ceilings"])
        lines += ["", "## What the machine allows", "", f"Ceilings {found.source}; `python -m bench.roofline` counts."]
        lines += ["", roofline("mythos_1b", found, "bfloat16"), "", roofline("mythos_1b", found, "float32")]
    return "\n".join(lines) + "\n"


def fractions(recorded: dict[str, Any]) -> dict[str, dict[str, float]]:
    """{phase: {dtype: fraction of the floor}} of the whole model."""
    found: dict[str, dict[str, float]] = {phase: {} for phase in PHASES}
    for entry in recorded["benchmarks"]:
        name, info = short(entry["fullname"]), entry["extra_info"]
        for phase in PHASES:
            for dtype in ("float32", "bfloat16"):
                if name == f"model {phase}[{dtype}]" and "fraction_of_floor" in info:
                    found[phase][dtype] = round(info["fraction_of_floor"], 3)
    return {phase: rates for phase, rates in found.items() if rates}


def store_fractions(recorded: dict[str, Any]) -> None:
    """Store the fractions of the whole model in the package, for `openmythos plan`."""
    found = fractions(recorded)
    if not found:
        return
    table = json.loads(FILE.read_text(encoding="utf-8")) | {recorded["machine_info"]["device"]: found}
    FILE.write_text(json.dumps(dict(sorted(table.items())), indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write report.md and report.png next to bench.json."""
    from bench.plots import bars

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of bench.json")
    parser.add_argument("--store-fractions", action="store_true", help="store the model's fractions in the package")
    args = parser.parse_args()
    folder = args.folder
    recorded = load(folder / "bench.json")
    (folder / "report.md").write_text(markdown(recorded), encoding="utf-8")
    bars(recorded, folder / "report.png")
    if args.store_fractions:
        store_fractions(recorded)
    print(f"Wrote {folder / 'report.md'} and report.png")


if __name__ == "__main__":
    main()
