"""`import openmythos` costs little beside torch: packages that only some calls need are imported by those calls."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Compilers, and packages of the demo, upstream's checkpoints, the tokenizer and the command line.
HEAVY = (
    *("torch._dynamo", "torch._inductor", "triton", "transformers", "tokenizers", "datasets", "huggingface_hub"),
    *("matplotlib", "rich", "scipy", "pandas", "pytest", "open_mythos"),
)


@pytest.mark.parametrize("module", ["openmythos", "openmythos.ops", "openmythos.engine"])
def test_imports_nothing_heavy(module: str) -> None:
    command = f"import sys, torch; before = set(sys.modules); import {module}; print(*(set(sys.modules) - before))"
    said = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
    assert sorted(set(HEAVY) & set(said.split())) == []
