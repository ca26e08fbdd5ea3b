"""`python -m tests.emulated.counts OP` prints what each kernel of an op executed on the emulator, as a Markdown table.

One row a kernel and dtype: of its builds the one that executed the largest share of matrix instructions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from tests.emulated import records


def _dtype(record: dict[str, Any]) -> str:
    return record["specimen"].split("/")[-1]


def best(found: records.Records) -> Iterator[dict[str, Any]]:
    """The record of each (kernel, dtype) whose share of matrix instructions is largest, and then the shortest."""
    kept: dict[tuple[str, str], dict[str, Any]] = {}
    for record in found.values():
        key = record["kernel"], _dtype(record)
        rank = (record["wmma"] / record["instructions"], -record["instructions"])
        if key not in kept or rank > (kept[key]["wmma"] / kept[key]["instructions"], -kept[key]["instructions"]):
            kept[key] = record
    return iter(kept[key] for key in sorted(kept))


def markdown(op: str) -> str:
    """The table of one op."""
    lines = ["| kernel | specimen | instructions | WMMA | share |", "| --- | --- | ---: | ---: | ---: |"]
    for record in best(records.read(op)):
        share = f"{record['wmma'] / record['instructions']:.1%}" if record["wmma"] else ""
        name = record["specimen"].removeprefix(f"{op}/")
        lines.append(f"| `{record['kernel']}` | {name} | {record['instructions']:,} | {record['wmma']:,} | {share} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(markdown(name))
