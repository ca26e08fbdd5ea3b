"""The measurement of what a call costs on the host still runs; its numbers are a machine's, and nobody judges them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.native.conftest import missing
from tools import building


@pytest.mark.slow
def test_the_measurement_runs() -> None:
    if missing() is not None:
        pytest.skip(missing())
    command = [sys.executable, "-m", "tools.host_cost", "--rounds", "1", "--processes", "1"]
    said = subprocess.run(command, cwd=building.ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"{op} " in said for op in ("import openmythos", "loop_step_", "rms_norm", "mla_attention"))
