"""Compiles HIP sources to gfx1151 code objects with clang alone: builtins only, no headers or libraries of ROCm."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

COMPILERS = ("amdclang++", "clang++-20", "clang++-19", "clang++-18", "clang++")


def compiler() -> str | None:
    """clang 18 or later: HIP_CLANG's, or the first on PATH."""
    return os.environ.get("HIP_CLANG") or next(filter(shutil.which, COMPILERS), None)


def compile_hip(source: str, flags: Sequence[str] = ()) -> bytes:
    """The gfx1151 code object of a HIP source.

    Raises:
        RuntimeError: with the compiler's words, when it does not compile.
    """
    command = [compiler(), "-x", "hip", "--offload-arch=gfx1151", "--cuda-device-only", "--no-gpu-bundle-output"]
    command += ["-nogpuinc", "-nogpulib", "-O3", *flags]
    with tempfile.TemporaryDirectory() as folder:
        kernel, out = Path(folder) / "kernel.hip", Path(folder) / "kernel.hsaco"
        kernel.write_text(source)
        done = subprocess.run([*command, kernel, "-o", out], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return out.read_bytes()
