"""CUDA's products of blocks through shared memory: swizzle, ldmatrix, mma.sync and wgmma by their definitions."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import building, cuda_on_host


@pytest.mark.skipif(building.missing_gxx() is not None, reason=f"{building.missing_gxx()}")
@pytest.mark.parametrize("flags", [pytest.param((), id="mma.sync"), pytest.param((cuda_on_host.HOPPER,), id="wgmma")])
def test_product_of_blocks(tmp_path: Path, flags: tuple[str, ...]) -> None:
    cuda_on_host.translate(tmp_path)
    program = tmp_path / "block_product"
    command = [
        building.GXX,
        "-std=c++20",
        "-O1",
        "-mfma",
        "-Wno-unknown-pragmas",
        *flags,
        "-I",
        str(tmp_path),
        "-I",
        str(cuda_on_host.HERE),
    ]
    source = Path(__file__).with_name("block_product.cpp")
    made = subprocess.run([*command, str(source), "-o", str(program)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert said == "0 of 16384 wrong\n"
