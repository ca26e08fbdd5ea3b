"""Shapes and inputs of the cases: the variants, shrunk for a smoke run, and what fits into memory and caches."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from openmythos.config import VARIANTS, MythosConfig
from openmythos.host import available_memory
from openmythos.memory import prefer_huge_pages

# size of the last-level cache if the system does not report it
ASSUMED_CACHE = 64 * 2**20
ALL = tuple(name.removeprefix("mythos_") for name in VARIANTS)
# smaller widths, the same structure
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
    """A parameter as part of a case's name."""
    return str(value).removeprefix("torch.")


def config(variant: str, smoke: bool) -> MythosConfig:
    """The config of "1b", "3b", ..., or a tiny one with the same structure for a smoke run."""
    cfg = VARIANTS[f"mythos_{variant}"]()
    return dataclasses.replace(cfg, **_SMOKE) if smoke else cfg


def free_memory(device: torch.device) -> float:
    """Bytes that can still be allocated; infinite where the system does not report them."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = available_memory()
    return math.inf if free is None else free


def need(nbytes: float, device: torch.device) -> None:
    """Skip the case when `nbytes` and a margin of 10% do not fit."""
    free = free_memory(device)
    if 1.1 * nbytes > free:
        pytest.skip(f"needs {nbytes / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")


def random_weights(*shape: int, dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> torch.Tensor:
    """A large weight: 16 M normal random elements, repeated."""
    flat = prefer_huge_pages(torch.empty(shape, dtype=dtype, device=device)).view(-1)
    block = (torch.randn(min(flat.numel(), 2**24 + 1), device=device) * scale).to(dtype)
    for start in range(0, flat.numel(), block.numel()):
        part = flat[start : start + block.numel()]
        part.copy_(block[: part.numel()])
    return flat.view(shape)


def last_cache_bytes() -> int:
    """The size of the last-level cache."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).L2_cache_size
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return int(caches[-1].read_text().strip().removesuffix("K")) * 1024 if caches else ASSUMED_CACHE


def sets_beyond_cache(nbytes: int, max_sets: int = 64) -> int:
    """The number of input sets of this size that fill the last-level cache twice, so that rotating inputs miss it."""
    return max(2, min(max_sets, math.ceil(2 * last_cache_bytes() / max(nbytes, 1))))
