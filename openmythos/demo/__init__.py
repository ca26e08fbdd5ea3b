"""Upstream's model and this one side by side: the same weights, text and loops; time, error and cache size."""

from __future__ import annotations

from openmythos.demo.contenders import DemoError
from openmythos.demo.run import run_demo

__all__ = ["DemoError", "run_demo"]
