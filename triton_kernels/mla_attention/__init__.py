"""Multi-head latent attention: absorbed for few new tokens, decompressed for many, and the backward of the latter."""

from __future__ import annotations

from openmythos.triton_kernels.mla_attention.decode import mla_decode

__all__ = ["mla_decode"]
