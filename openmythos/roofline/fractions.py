"""Measured fractions of the floor by device, stored by the benchmarks and read by `openmythos plan`."""

from __future__ import annotations

import functools
import json
from pathlib import Path

FILE = Path(__file__).parent / "fractions.json"
# the phases of the whole model that the benchmarks time
PHASES = ("decode", "prefill")


@functools.cache
def _table() -> dict[str, dict[str, dict[str, float]]]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def measured_fraction(device: str, phase: str, dtype: str) -> float | None:
    """The fraction of the floor that mythos_1b reached on `device` (see `device_name`), or None if not measured."""
    return _table().get(device, {}).get(phase, {}).get(dtype)
