"""Multi-head latent attention: two algorithms and the backward of the decompressed one.

absorbed.py folds the queries into the latent space; absorbed_wide.py replaces its attention for latents that do not
fit an accumulator. decompressed.py attends to keys and values that decompress.py rebuilds. tiles.py has shared parts.
"""

from __future__ import annotations

from openmythos.triton_kernels.mla_attention.absorbed import mla_absorbed
from openmythos.triton_kernels.mla_attention.backward import mla_attention_backward
from openmythos.triton_kernels.mla_attention.decompressed import mla_decompressed

__all__ = ["mla_absorbed", "mla_attention_backward", "mla_decompressed"]
