"""Compiles one file of device code for one architecture, for CMake and the tests.

python tools/device_code.py COMPILER path/to/loop_step.cu gfx1151 loop_step.gfx1151.hsaco
"""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1] / "csrc"
COMMON = ("-std=c++20", "-O3")
# Built-in headers and device libraries need not be installed. A compilation id would make builds differ.
HIP = ("-x", "hip", "--cuda-device-only", "--no-gpu-bundle-output", "-nogpuinc", "-nogpulib", "-fuse-cuid=none")
WARNINGS = ("-Wall", "-Wextra", "-Werror")


def sources() -> dict[str, Path]:
    """The files of device code by name; one gives one code object for each architecture."""
    return {path.stem: path for path in sorted(CSRC.rglob("*.cu"))}


def headers() -> list[Path]:
    """The headers of every vendor that these files include, directly or not."""
    found: set[Path] = set()
    rest = list(sources().values())
    while rest:
        file = rest.pop()
        # The define names the header that `#include` reads through a macro.
        for name in re.findall(
            r'^#(?:include|define \w+_HEADER) "(.+)"', file.read_text(encoding="utf-8"), re.MULTILINE
        ):
            path = (file.parent / name).resolve()
            if path not in found:
                found.add(path)
                rest.append(path)
    return sorted(found)


def ops() -> list[str]:
    """Names of the files with device code."""
    return sorted(sources())


def suffix(arch: str) -> str:
    """The suffix of a code object's file name: "hsaco", "cubin" or, for PTX, "ptx"."""
    return "hsaco" if arch.startswith("gfx") else "ptx" if arch.startswith("compute_") else "cubin"


def command(compiler: str, source: Path, arch: str, output: Path) -> list[str]:
    """The compiler's command line; ptxas reports registers and spills."""
    kind = suffix(arch)
    if kind == "hsaco":
        target = (*HIP, f"--offload-arch={arch}", *WARNINGS)
    else:
        target = (f"-{kind}", f"-arch={arch}", "-Werror=all-warnings", *(("-Xptxas=-v",) if kind == "cubin" else ()))
    return [compiler, *COMMON, *target, str(source), "-o", str(output)]


def main() -> None:
    """Compile from the command line; the compiler's output is shown only if it fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("compiler")
    parser.add_argument("source", type=Path)
    parser.add_argument("arch")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    line = command(arguments.compiler, arguments.source, arguments.arch, arguments.output)
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\n{done.stdout}{done.stderr}")
    # Shipped as data: clang marks a linked file executable.
    arguments.output.chmod(0o644)


if __name__ == "__main__":
    main()
