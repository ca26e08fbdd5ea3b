"""The instructions that each kernel executed, as a Markdown table.

    python -m tools.gfx1151_emulator.counts tests/golden/triton/OP.json ...

One line per kernel and dtype, for the build that executed the largest fraction of matrix instructions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _dtype(record: dict[str, Any]) -> str:
    return record["specimen"].split("/")[-1]


def best(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """For each (kernel, dtype) the record with the largest fraction of matrix instructions, then the shortest."""
    kept: dict[tuple[str, str], dict[str, Any]] = {}
    for record in found:
        key = record["kernel"], _dtype(record)
        rank = (record["wmma"] / record["instructions"], -record["instructions"])
        if key not in kept or rank > (kept[key]["wmma"] / kept[key]["instructions"], -kept[key]["instructions"]):
            kept[key] = record
    return iter(kept[key] for key in sorted(kept))


def markdown(path: Path) -> str:
    """What a golden table records as executed."""
    lines = ["| kernel | specimen | instructions | WMMA | share |", "| --- | --- | ---: | ---: | ---: |"]
    for record in best(json.loads(path.read_text(encoding="utf-8"))["executed"]):
        share = f"{record['wmma'] / record['instructions']:.1%}" if record["wmma"] else ""
        name = record["specimen"].removeprefix(f"{path.stem}/")
        lines.append(f"| `{record['kernel']}` | {name} | {record['instructions']:,} | {record['wmma']:,} | {share} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(markdown(Path(name)))
