"""What the compilers made of every kernel for every architecture: `golden/OP.json`, a line a kernel.

`python -m tests.native.golden [OP...]` rewrites them; a change is reviewed like a change of code.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools import building, code_objects, device_code

GOLDEN = Path(__file__).with_name("golden")
EXECUTED = Path(__file__).with_name("executed")
ARCHS = ("sm_80", "sm_90a", "sm_100", "sm_120", "gfx1100", "gfx1151")
LDS_BYTES = 65536
# {arch: {kernel: facts}}, and under "compilers" what made them: {vendor: version}
Table = dict[str, dict[str, Any]]


def compiler_version(arch: str) -> str:
    """The version of the compiler for the architecture, as the table names it."""
    compiler = building.compiler_for(arch).compiler
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"clang version \S+|release \S+, V\S+", said).group(0)


def _ptxas_facts(said: str) -> dict[str, dict[str, int]]:
    found = {}
    for part in said.split("Compiling entry function '")[1:]:
        numbers = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers(.*)",
            part,
            re.DOTALL,
        )
        stack, stores, loads, registers, rest = numbers.groups()
        shared = re.search(r"(\d+) bytes smem", rest)
        found[part.split("'")[0]] = {
            "registers": int(registers),
            "spills": int(stores) + int(loads) + int(stack),
            "shared": int(shared.group(1)) if shared else 0,
        }
    return found


def facts(op: str, arch: str) -> dict[str, dict[str, Any]]:
    """{kernel: registers, spills, static shared memory}; for AMD also the sha256 of the code object."""
    path, said = building.device_object(op, arch)
    if not arch.startswith("gfx"):
        return _ptxas_facts(said)
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return {
        name: {
            "registers": kernel.vgprs,
            "spills": kernel.spills + kernel.scratch,
            "shared": kernel.lds,
            "sha256": digest,
        }
        for name, kernel in sorted(code_objects.amd_facts(data).items())
    }


def read(op: str, folder: Path = GOLDEN) -> Table:
    """The committed table of an op."""
    path = folder / f"{op}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(op: str, table: Table, folder: Path = GOLDEN) -> None:
    """Write a table of two levels, sorted, an entry a line."""
    parts = []
    for key in sorted(table):
        lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(table[key][name])}" for name in sorted(table[key]))
        parts.append(f"  {json.dumps(key)}: {{\n{lines}\n  }}")
    (folder / f"{op}.json").write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def main() -> None:
    """Compile the ops of the command line, or every one, and rewrite their tables."""
    for op in sys.argv[1:] or device_code.ops():
        table: Table = {"compilers": {}}
        for arch in ARCHS:
            table["compilers"]["rocm" if arch.startswith("gfx") else "cuda"] = compiler_version(arch)
            table[arch] = facts(op, arch)
            print(arch, op, flush=True)
        write(op, table)


if __name__ == "__main__":
    main()
