"""Resident memory of accelerate, save and load, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("open_mythos", reason="the oracle, the package open-mythos, is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc"),
]
ROOT = Path(__file__).parents[2]
# The largest tensor that is held twice, and what importing costs on first use.
SLACK_MB = 40


def measure(step: str, dtype: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.patch.memory", step, dtype, "small"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_accelerate_peaks_at_the_source(dtype: str) -> None:
    found = measure("accelerate", dtype)
    assert found["peak"] <= 1.10 * found["before"], found
    left = found["before"] - found["empty"]
    factor = 1.0 if dtype == "float32" else 0.5
    assert found["after"] - found["empty"] <= (factor + 0.10) * left + SLACK_MB, found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_load_peaks_at_the_model_and_one_tensor(dtype: str) -> None:
    found = measure("load", dtype)
    assert found["peak"] - found["before"] <= found["weights"] + SLACK_MB, found


def test_save_holds_no_second_copy() -> None:
    found = measure("save", "float32")
    assert found["peak"] - found["before"] <= SLACK_MB, found
