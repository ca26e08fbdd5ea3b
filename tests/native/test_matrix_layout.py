"""The operand layout of CUDA's matrix instruction; AMD's is tested on the emulator."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tools import building, device_code


@pytest.mark.skipif(building.missing_gxx() is not None, reason=f"{building.missing_gxx()}")
def test_mma_vectors_gives_the_instruction_what_it_wants(tmp_path: Path) -> None:
    mma = (device_code.CSRC / "core" / "gpu" / "cuda" / "mma.h").read_text(encoding="utf-8")
    instruction = re.compile(r"#define OPENMYTHOS_MMA\(type\).*?#undef OPENMYTHOS_MMA\n", re.DOTALL)
    replaced, count = instruction.subn("record(c, a0, a1, a2, a3, b0, b1);\n", mma)
    assert count == 1
    for header in device_code.headers():
        to = tmp_path / header.relative_to(device_code.CSRC)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(header.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "core" / "gpu" / "cuda" / "mma.h").write_text(replaced, encoding="utf-8")
    program = tmp_path / "matrix_layout"
    command = [
        building.GXX,
        "-std=c++20",
        "-O1",
        "-I",
        str(tmp_path),
        str(Path(__file__).with_name("matrix_layout.cpp")),
    ]
    made = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert said == "4 instructions, 256 elements, 0 wrong\n"
