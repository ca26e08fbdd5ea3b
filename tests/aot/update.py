"""`python -m tests.aot.update [op ...]` rewrites the golden tables of these ops, without names of all.

Emulator records of code objects that left a table are dropped.
"""

from __future__ import annotations

import sys

from tests.aot import golden, records
from tests.aot.specimens import load


def main(names: list[str]) -> None:
    """Compile, print what changed, write."""
    known = load()
    unknown = set(names) - set(known)
    if unknown:
        sys.exit(f"no specimens of {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    for op in names or known:
        old, table = golden.read(op), {}
        for target in golden.targets():
            table[target.arch] = {s.name: golden.build(s, target).rows for s in known[op]}
            for specimen, rows in table[target.arch].items():
                if rows != old.get(target.arch, {}).get(specimen):
                    print(target.arch, specimen, flush=True)
                    for row in rows:
                        print("   ", *(value for name, value in row.items() if name != "sha256"), flush=True)
        golden.write(op, table)
        records.keep_only(op, {row["sha256"] for _, row in golden.rows(table, "gfx1151")})


if __name__ == "__main__":
    main(sys.argv[1:])
