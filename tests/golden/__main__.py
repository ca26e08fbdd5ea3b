"""`python -m tests.golden [triton/OP | cpp/OP ...]` rewrites these golden tables, without names all of them."""

from __future__ import annotations

import argparse

from tests import golden
from tests.golden import Row


def _report(where: str, old: list[Row] | None, new: list[Row]) -> None:
    """Print the rows that changed; a change of only sha256 prints the name of its kernel."""
    for row in new if new != old else []:
        if row not in (old or []):
            print(where, *(value for name, value in row.items() if name != "sha256"), flush=True)


def _triton(op: str) -> None:
    import triton

    from openmythos.triton_kernels.launch import TARGETS
    from tests.aot.build import build
    from tests.aot.specimens import load

    old, compiled = golden.read("triton", op).compiled, {}
    for target in TARGETS.values():
        compiled[target.arch] = {specimen.name: build(specimen, target).rows for specimen in load()[op]}
        for name, rows in compiled[target.arch].items():
            _report(f"{target.arch} {name}", old.get(target.arch, {}).get(name), rows)
    golden.write("triton", op, {"triton": triton.__version__}, compiled)


def _cpp(op: str) -> None:
    from tests.native import build

    old, compiled, compilers = golden.read("cpp", op).compiled, {}, {}
    for arch in build.ARCHS:
        compilers[build.vendor(arch)] = build.compiler_version(arch)
        compiled[arch] = {op: build.rows(op, arch)}
        _report(arch, old.get(arch, {}).get(op), compiled[arch][op])
    golden.write("cpp", op, compilers, compiled)


def _known() -> list[str]:
    from tests.aot.specimens import load
    from tools import device_code

    return [*(f"triton/{op}" for op in load()), *(f"cpp/{op}" for op in device_code.ops())]


def main() -> None:
    """Compile the ops of the command line for every architecture, print what changed and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="SOURCE/OP", help=f"(default: all) {', '.join(_known())}")
    args = parser.parse_args()
    unknown = set(args.tables) - set(_known())
    if unknown:
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(_known())}")
    for table in args.tables or _known():
        source, op = table.split("/")
        print(f"Compiling {table}", flush=True)
        (_triton if source == "triton" else _cpp)(op)


if __name__ == "__main__":
    main()
