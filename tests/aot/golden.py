"""The golden table: what the compiler made of every specimen for every target."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from openmythos.triton_kernels import aot, configs
from openmythos.triton_kernels.launch import TARGETS, Launch, Target, executing
from tests.aot.specimens import Specimen

FOLDER = Path(__file__).with_name("golden")
# {target: {specimen: rows}}, of one op
Table = dict[str, dict[str, list[dict[str, Any]]]]


class Built(NamedTuple):
    """The code objects of one specimen for one target, in order of launch, and the config entries that were taken."""

    rows: list[dict[str, Any]]
    launches: list[Launch]
    taken: dict[str, set[int]]


def build(specimen: Specimen, target: Target) -> Built:
    """Compile everything that the specimen launches at its real size; a code object that comes twice counts once."""
    rows: list[dict[str, Any]] = []
    launches: list[Launch] = []

    def run(launch: Launch) -> None:
        compiled = aot.compile_launch(launch, target)
        row = {"kernel": compiled.metadata.name, "config": aot.label(launch)}
        row |= aot.facts(compiled, target)._asdict()
        if row not in rows:
            rows.append(row)
            launches.append(launch)

    with configs.record() as taken, executing(target, run):
        specimen.call(*specimen.inputs("meta", *specimen.real))
    return Built(rows, launches, taken)


def read(op: str) -> Table:
    """The committed table of an op."""
    path = FOLDER / f"{op}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write(op: str, table: Table) -> None:
    """Write the table of an op, sorted, one code object a line."""
    lines = ["{"]
    for target in sorted(table):
        lines.append(f'  "{target}": {{')
        for specimen in sorted(table[target]):
            lines.append(f'    "{specimen}": [')
            lines += [f"      {json.dumps(row)}," for row in table[target][specimen]]
            lines[-1] = lines[-1].removesuffix(",")
            lines.append("    ],")
        lines[-1] = lines[-1].removesuffix(",")
        lines.append("  },")
    lines[-1] = lines[-1].removesuffix(",")
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{op}.json").write_text("\n".join([*lines, "}"]) + "\n")


def rows(table: Table, target: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(specimen, row) of every code object for a target."""
    for specimen, listed in table.get(target, {}).items():
        for row in listed:
            yield specimen, row


def targets() -> list[Target]:
    """The targets of the table."""
    return list(TARGETS.values())
