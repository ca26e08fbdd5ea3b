"""Rotary position embedding on interleaved pairs."""

from __future__ import annotations

import torch

from openmythos import dispatch, reference
from openmythos.ops._library import accepts_backend, direct

dispatch.register_reference("rope", reference.rope)


@accepts_backend
def rope(x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """(x0 + i x1) * (cos + i sin) on adjacent pairs, computed in float32 (Su et al., arXiv 2104.09864).

    x (B, T, H, d), cos_sin (T, d/2, 2) float32 -> (B, T, H, d) in x's dtype.
    """
    if direct(x):
        return dispatch.select("rope", x.device.type, x, cos_sin)(x, cos_sin)
    return reference.rope(x, cos_sin)
