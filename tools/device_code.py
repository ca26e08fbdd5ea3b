"""Compiles one file of csrc/gpu for one architecture: what CMake and the tests call.

python tools/device_code.py COMPILER csrc/gpu/loop_step.cu gfx1151 loop_step.gfx1151.hsaco
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

GPU = Path(__file__).resolve().parents[1] / "csrc" / "gpu"
COMMON = ("-std=c++20", "-O3")
# No built-in headers and no device libraries: they need not be installed. An id of the compilation would make two
# builds differ.
HIP = ("-x", "hip", "--cuda-device-only", "--no-gpu-bundle-output", "-nogpuinc", "-nogpulib", "-fuse-cuid=none")
WARNINGS = ("-Wall", "-Wextra", "-Werror")


def ops() -> list[str]:
    """Names of the files with device code."""
    return sorted(path.stem for path in GPU.glob("*.cu"))


def suffix(arch: str) -> str:
    """How a code object's file name ends: "hsaco", "cubin" or, for PTX, "ptx"."""
    return "hsaco" if arch.startswith("gfx") else "ptx" if arch.startswith("compute_") else "cubin"


def command(compiler: str, source: Path, arch: str, output: Path) -> list[str]:
    """The compiler's command line; ptxas tells what each kernel uses."""
    kind = suffix(arch)
    if kind == "hsaco":
        target = (*HIP, f"--offload-arch={arch}", *WARNINGS)
    else:
        target = (f"-{kind}", f"-arch={arch}", "-Werror=all-warnings", *(("-Xptxas=-v",) if kind == "cubin" else ()))
    return [compiler, *COMMON, *target, str(source), "-o", str(output)]


def main() -> None:
    """Compile from the command line; what the compiler says is shown only if it fails."""
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
