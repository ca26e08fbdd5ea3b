"""Resident memory of accelerate, save and load, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from openmythos.acceleration import _TRIM_BYTES

pytest.importorskip("open_mythos", reason="the oracle, the package open-mythos, is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc"),
]
ROOT = Path(__file__).parents[2]
# The largest tensor that is held twice, plus imports on first use.
SLACK_MB = 40


# Library pages that the kernel drops during a step look like memory of the step: a test fails if all attempts do.
ATTEMPTS = 3


def measure(step: str, dtype: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.acceleration.memory", step, dtype, "small"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])


def assert_holds(step: str, dtype: str, holds: Callable[[dict[str, float]], bool]) -> None:
    found: list[dict[str, float]] = []
    while len(found) < ATTEMPTS:
        found.append(measure(step, dtype))
        if holds(found[-1]):
            return
    raise AssertionError(found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_accelerate_peaks_at_the_source(dtype: str) -> None:
    factor = 1.0 if dtype == "float32" else 0.5

    def holds(found: dict[str, float]) -> bool:
        left = found["before"] - found["empty"]
        peak = found["peak"] - found["before"] <= _TRIM_BYTES / 2**20 + SLACK_MB
        return peak and found["after"] - found["empty"] <= (factor + 0.10) * left + SLACK_MB

    assert_holds("accelerate", dtype, holds)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_load_peaks_at_the_model_and_one_tensor(dtype: str) -> None:
    assert_holds("load", dtype, lambda found: found["peak"] - found["before"] <= found["weights"] + SLACK_MB)


def test_save_holds_no_second_copy() -> None:
    assert_holds("save", "float32", lambda found: found["peak"] - found["before"] <= SLACK_MB)
