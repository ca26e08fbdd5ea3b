"""Compiles specimens of the Triton launchers to rows of the golden table."""

from __future__ import annotations

from typing import NamedTuple

from openmythos.triton_kernels import aot, configs
from openmythos.triton_kernels.launch import Launch, Target, executing
from tests.aot.specimens import Specimen
from tests.golden import Row


class Built(NamedTuple):
    """The code objects of one specimen for one target, in order of launch, and the config entries that were taken."""

    rows: list[Row]
    launches: list[Launch]
    taken: dict[str, set[int]]


def build(specimen: Specimen, target: Target) -> Built:
    """Compile everything that the specimen launches at its real size; a code object that comes twice counts once."""
    rows: list[Row] = []
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
