"""Fractions of the floor that the benchmarks measured, by device: kept with the package for `openmythos plan`."""

from __future__ import annotations

import functools
import json
from pathlib import Path

FILE = Path(__file__).parent / "fractions.json"
# the phases of the model that the benchmarks time whole
PHASES = ("decode", "prefill")


@functools.cache
def _table() -> dict[str, dict[str, dict[str, float]]]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def measured_fraction(device: str, phase: str, dtype: str) -> float | None:
    """Fraction of the floor that mythos_1b reached on `device` (a name of `device_name`); None if nobody measured."""
    return _table().get(device, {}).get(phase, {}).get(dtype)
