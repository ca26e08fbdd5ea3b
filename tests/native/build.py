"""Compiles the device code of csrc to rows of the golden table."""

from __future__ import annotations

import hashlib
import re
import subprocess

from tests.golden import Row
from tools import building, code_objects

ARCHS = ("sm_80", "sm_90a", "sm_100", "sm_120", "gfx1100", "gfx1151")
LDS_BYTES = 65536


def compiler_version(arch: str) -> str:
    """The version of the compiler for the architecture, as the table names it."""
    compiler = building.compiler_for(arch).compiler
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"clang version \S+|release \S+, V\S+", said).group(0)


def _ptxas_rows(said: str) -> list[Row]:
    found = []
    for part in said.split("Compiling entry function '")[1:]:
        numbers = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers(.*)",
            part,
            re.DOTALL,
        )
        stack, stores, loads, registers, rest = numbers.groups()
        shared = re.search(r"(\d+) bytes smem", rest)
        found.append(
            {
                "kernel": part.split("'")[0],
                "registers": int(registers),
                "spills": int(stores) + int(loads) + int(stack),
                "shared": int(shared.group(1)) if shared else 0,
            }
        )
    return sorted(found, key=lambda row: row["kernel"])


def vendor(arch: str) -> str:
    """The name of the vendor's compiler in the tables, "cuda" or "rocm"."""
    return "rocm" if arch.startswith("gfx") else "cuda"


def rows(op: str, arch: str) -> list[Row]:
    """The kernels of an op's code object, by name; for AMD with the sha256 of the code object."""
    path, said = building.device_object(op, arch)
    if vendor(arch) == "cuda":
        return _ptxas_rows(said)
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return [
        {
            "kernel": name,
            "registers": kernel.vgprs,
            "spills": kernel.spills + kernel.scratch,
            "shared": kernel.lds,
            "sha256": digest,
        }
        for name, kernel in sorted(code_objects.amd_facts(data).items())
    ]
