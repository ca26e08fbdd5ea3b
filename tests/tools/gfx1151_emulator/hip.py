"""What tests of the emulator share: the reason to skip, and the compiled programs."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from tools import gfx1151_emulator as emulator
from tools.gfx1151_emulator.hip import compile_hip, compiler

PROGRAMS = Path(__file__).with_name("programs")


def missing() -> str | None:
    """The reason why no HIP program can be compiled and emulated here, or None."""
    return emulator.missing() or (None if compiler() else "no clang 18 or later is on PATH, nor named by HIP_CLANG")


needs_hip = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=f"{missing()}")]


@functools.cache
def program(name: str) -> bytes:
    """The code object of programs/<name>.hip."""
    return compile_hip((PROGRAMS / f"{name}.hip").read_text(), ["-I", str(PROGRAMS)])
