"""The Triton backend on NVIDIA and AMD GPUs: one file an op, which says what its kernels serve and registers rows.

Rows exist on "cuda" (ROCm's devices have that name too); with TRITON_INTERPRET=1, which runs kernels on CPU tensors,
also on "cpu", after every other backend. Importing this package does not import Triton: the first call does.
"""

from __future__ import annotations

from openmythos.backends.triton import loop_step, mla_attention, moe, rms_norm, rope

__all__ = ["loop_step", "mla_attention", "moe", "rms_norm", "rope"]
