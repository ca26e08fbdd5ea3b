"""The golden tables: what the compilers made of every GPU kernel, and which gfx1151 builds the emulator has executed.

One file an op, `triton/OP.json` or `cpp/OP.json`, all with the same three parts:

- `compilers`: {name: version} of what compiled it;
- `compiled`: {architecture: {specimen: rows}}. A row is a code object of Triton, or a kernel of a C++ code object. It
  has kernel, registers, spills and shared (bytes of static shared memory), for AMD the sha256 of the code object too.
  Triton's rows add config, matrix and widest_load. The C++ source of an op is one specimen with the op's name;
- `executed`: a row for each gfx1151 kernel and sha256, with the relative error and the instructions executed.

`python -m tests.golden [triton/OP | cpp/OP ...]` compiles these ops, by default all, and rewrites their tables. A
change of a table is reviewed like a change of code. `bench/kernels.py` reads the tables too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
EMULATED = "gfx1151"
Row = dict[str, Any]
# {architecture: {specimen: rows}}
Compiled = dict[str, dict[str, list[Row]]]


class Table(NamedTuple):
    """The parts of one file."""

    compilers: dict[str, str]
    compiled: Compiled
    executed: list[Row]

    def rows(self, arch: str) -> Iterator[tuple[str, Row]]:
        """(specimen, row) of everything that was compiled for an architecture."""
        for specimen, listed in self.compiled.get(arch, {}).items():
            for row in listed:
                yield specimen, row

    def record_of(self, row: Row) -> Row | None:
        """The record of executing what a compiled row describes, if it was executed."""
        return next((record for record in self.executed if _key(record) == _key(row)), None)


def _key(row: Row) -> tuple[str, str]:
    return row["sha256"], row["kernel"]


def ops(source: str) -> list[str]:
    """The ops that have a table; `source` is "triton" or "cpp"."""
    return sorted(path.stem for path in (FOLDER / source).glob("*.json"))


def read(source: str, op: str) -> Table:
    """The committed table of an op; an op without one has an empty table."""
    path = FOLDER / source / f"{op}.json"
    return Table(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else Table({}, {}, [])


def write(source: str, op: str, compilers: dict[str, str], compiled: Compiled) -> None:
    """Replace what was compiled. Records of code objects that are no longer in the table are dropped."""
    with _locked():
        _store(source, op, _current(Table(compilers, compiled, read(source, op).executed)))


def record(source: str, op: str, rows: Iterable[Row]) -> None:
    """Add records of executed code objects that the table has.

    The first record of a code object stays, so that running the tests again changes no file.
    """
    with _locked():
        old = read(source, op)
        known = {_key(row) for row in old.executed}
        new = _current(old._replace(executed=old.executed + [row for row in rows if _key(row) not in known]))
        if new != old:
            _store(source, op, new)


def _current(table: Table) -> Table:
    """Without records of what is not compiled any more."""
    current = {_key(row) for _, row in table.rows(EMULATED)}
    executed = {_key(row): row for row in table.executed if _key(row) in current}
    order = sorted(executed, key=lambda key: (executed[key]["kernel"], executed[key].get("config", ""), key))
    return table._replace(executed=[executed[key] for key in order])


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Other processes that write tables wait."""
    folder = os.open(FOLDER, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _rows(rows: list[Row], indent: str) -> str:
    return ",\n".join(indent + json.dumps(row) for row in rows)


def _store(source: str, op: str, table: Table) -> None:
    """Write a file, sorted, a row a line; readers see the old file or the new one."""
    archs = []
    for arch in sorted(table.compiled):
        specimens = [
            f"      {json.dumps(name)}: [\n{_rows(rows, ' ' * 8)}\n      ]"
            for name, rows in sorted(table.compiled[arch].items())
        ]
        archs.append(f"    {json.dumps(arch)}: {{\n" + ",\n".join(specimens) + "\n    }")
    compilers = json.dumps(dict(sorted(table.compilers.items())))
    executed = f"\n{_rows(table.executed, ' ' * 4)}\n  " if table.executed else ""
    text = f'{{\n  "compilers": {compilers},\n  "compiled": {{\n'
    text += ",\n".join(archs) + f'\n  }},\n  "executed": [{executed}]\n}}\n'
    path = FOLDER / source / f"{op}.json"
    path.parent.mkdir(exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
