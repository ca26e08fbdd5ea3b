"""Bytes, FLOPs and floor (the lower bound of the time) of every op and of the whole model, by machine."""

from __future__ import annotations

from openmythos.ops.cost import Cost, total
from openmythos.roofline.machine import MACHINES, Machine, device_name, measure

__all__ = ["MACHINES", "Cost", "Machine", "device_name", "measure", "total"]
