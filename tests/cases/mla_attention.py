"""Inputs of latent attention."""

from __future__ import annotations

import pytest
import torch

from tests.cases import randn

FORMS = pytest.mark.parametrize("form", ["absorbed", "decompressed"])
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
# The latents and heads of the models: (H, (dn, dr, dc, dv))
MODELS = {
    "1b": (16, (64, 32, 256, 64)),
    "3b": (24, (96, 32, 384, 96)),
    "10b": (32, (128, 64, 512, 128)),
    "50b": (48, (128, 64, 512, 128)),
    "500b": (96, (128, 64, 1024, 128)),
}


def attention_inputs(
    batch: int, new: int, total: int, heads: int, dims: tuple[int, int, int, int], dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """(q_nope, q_rope, latent, k_rope, w_uk, w_uv) as a model makes them: views of joint tensors."""
    dn, dr, dc, dv = dims
    cache = randn(batch, total, dc + dr, dtype=dtype)
    weight = randn(heads, dn + dv, dc, dtype=dtype, scale=dc**-0.5)
    q_nope, q_rope = randn(batch, new, heads, dn, dtype=dtype, scale=2), randn(batch, new, heads, dr, dtype=dtype)
    return [q_nope, q_rope, cache[..., :dc], cache[..., dc:], weight[:, :dn], weight[:, dn:]]


def paged(args: list[torch.Tensor], lengths: list[int], page: int, unused: int) -> tuple[list, torch.Tensor]:
    """The inputs with latent and k_rope in pools of shuffled pages: NaN in unused slots, `unused` as unused ids."""
    batch, total = args[2].shape[:2]
    width, dc = args[2].shape[2] + args[3].shape[2], args[2].shape[2]
    slots = -(-total // page)
    pool = torch.full((batch * slots + 3, page, width), float("nan"), dtype=args[2].dtype)
    table = torch.randperm(len(pool))[: batch * slots].view(batch, slots).to(torch.int32)
    for b, length in enumerate(lengths):
        for slot in range(slots):
            count = min(page, length - slot * page)
            if count <= 0:
                table[b, slot] = unused
                continue
            keys = slice(slot * page, slot * page + count)
            pool[table[b, slot], :count, :dc] = args[2][b, keys]
            pool[table[b, slot], :count, dc:] = args[3][b, keys]
    return [*args[:2], pool[..., :dc], pool[..., dc:], *args[4:]], table
