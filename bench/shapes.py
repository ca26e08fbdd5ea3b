"""The variants' shapes, shrunk for a smoke run, and what of them fits into memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from openmythos.config import VARIANTS, MythosConfig
from openmythos.memory import prefer_huge_pages

ALL = tuple(name.removeprefix("mythos_") for name in VARIANTS)
# every width divided, heads and experts kept in kind
_SMOKE = {
    "vocab_size": 96,
    "dim": 64,
    "n_heads": 2,
    "n_kv_heads": 2,
    "kv_lora_rank": 24,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "n_experts": 8,
    "n_shared_experts": 2,
    "n_experts_per_tok": 2,
    "expert_dim": 32,
    "lora_rank": 4,
    "max_loop_iters": 3,
}


def name(value: object) -> str:
    """A parameter in a case's name."""
    return str(value).removeprefix("torch.")


def config(variant: str, smoke: bool) -> MythosConfig:
    """The config of "1b", "3b", ...; a tiny one of the same kind for a smoke run."""
    cfg = VARIANTS[f"mythos_{variant}"]()
    return dataclasses.replace(cfg, **_SMOKE) if smoke else cfg


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def need(nbytes: float, device: torch.device) -> None:
    """Skip the case, saying why, when `nbytes` and a tenth do not fit."""
    free = free_memory(device)
    if 1.1 * nbytes > free:
        pytest.skip(f"needs {nbytes / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")


def random_weights(*shape: int, dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> torch.Tensor:
    """Random numbers for a big weight: 16 M normal ones, repeated."""
    flat = prefer_huge_pages(torch.empty(shape, dtype=dtype, device=device)).view(-1)
    block = (torch.randn(min(flat.numel(), 2**24 + 1), device=device) * scale).to(dtype)
    for start in range(0, flat.numel(), block.numel()):
        part = flat[start : start + block.numel()]
        part.copy_(block[: part.numel()])
    return flat.view(shape)
