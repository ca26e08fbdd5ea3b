"""Multi-head latent attention: absorbed for few new tokens, decompressed for many, and the backward of the latter.

decode.py folds the queries into the latent space, wide.py is its middle for latents that no accumulator can hold,
prefill.py attends with keys and values rebuilt by decompress.py, backward.py is the gradient, tiles.py what all share.
"""

from __future__ import annotations

import torch

from openmythos.triton_kernels.mla_attention.backward import mla_attention_backward
from openmythos.triton_kernels.mla_attention.decode import mla_decode
from openmythos.triton_kernels.mla_attention.prefill import mla_prefill

__all__ = ["mla_attention", "mla_attention_backward", "mla_decode", "mla_prefill"]


def mla_attention(*args: object) -> tuple[torch.Tensor, torch.Tensor]:
    """out (B, T, H, dv) and lse (B, H, T), in the form that the op's last argument names; see openmythos.ops."""
    *rest, form = args if len(args) == 11 else (*args, "decompressed")
    return (mla_decode if form == "absorbed" else mla_prefill)(*rest)
