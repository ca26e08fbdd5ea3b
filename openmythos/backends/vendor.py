"""Vendors' libraries on GPUs through torch: cuBLAS or hipBLASLt for the dense products."""

from __future__ import annotations

from openmythos import reference
from openmythos.dispatch import register

register("linear", "torch", reference.linear, device="cuda")
register("swiglu", "torch", reference.swiglu, device="cuda")
