"""The measurement of a call's host cost runs; its results depend on the machine and are not checked."""

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
    assert all(f"{op} " in said for op in ("import openmythos", "loop_step_", "rms_norm", "mla_absorbed"))
