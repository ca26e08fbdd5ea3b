"""Vendors' libraries on GPUs through torch: cuBLAS or hipBLASLt for the dense products."""

from __future__ import annotations

from openmythos import reference
from openmythos.dispatch import register

register("linear", "torch", lambda call: reference.linear(*call), device="cuda")
register("swiglu", "torch", lambda call: reference.swiglu(*call), device="cuda")
