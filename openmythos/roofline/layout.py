"""The number of devices that a model needs, and how they share its weights: tensor, expert and data parallel."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from openmythos.config import MythosConfig
from openmythos.roofline import model

# fraction of a device's memory for weights and cache; the rest is for activations, workspaces and fragmentation
USABLE = 0.9
TENSOR = (1, 2, 4, 8)
# weight, gradient, and AdamW's float32 copy and two float32 moments
TRAINING_BYTES = 2 + 2 + 4 + 4 + 4


class Layout(NamedTuple):
    """The grid of devices: each matrix is split over `tensor` devices, the routed experts over `experts` groups.

    The groups are data parallel in everything but the routed experts. Each device holds `weights` bytes and has
    `cache` bytes left for the cache.
    """

    devices: int
    tensor: int
    experts: int
    weights: float
    cache: float


def layout(cfg: MythosConfig, dtype: torch.dtype, memory: float, tensor: int) -> Layout | None:
    """The smallest layout with this tensor-parallel width, or None where the width does not divide the model."""
    if cfg.n_heads % tensor or cfg.expert_dim % tensor:
        return None
    routed = model.routed_parameters(cfg) * dtype.itemsize
    dense = model.parameters(cfg) * dtype.itemsize - routed
    usable = USABLE * memory
    for groups in (count for count in range(1, cfg.n_experts + 1) if cfg.n_experts % count == 0):
        weights = (dense + routed / groups) / tensor
        if weights < usable:
            return Layout(tensor * groups, tensor, groups, weights, usable - weights)
    return None


def layouts(cfg: MythosConfig, dtype: torch.dtype, memory: float) -> list[Layout]:
    """One layout for each tensor-parallel width that divides the model, the smallest first."""
    found = [layout(cfg, dtype, memory, tensor) for tensor in TENSOR]
    return sorted((one for one in found if one is not None), key=lambda one: (one.devices, one.tensor))


def training_devices(cfg: MythosConfig, memory: float) -> int:
    """The number of devices that hold weights, gradients and AdamW's state, all sharded, without activations."""
    return math.ceil(model.parameters(cfg) * TRAINING_BYTES / (USABLE * memory))
