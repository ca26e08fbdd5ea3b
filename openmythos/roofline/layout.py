"""How many devices a model needs, and how its weights are cut over them: tensor, expert and data parallel."""

from __future__ import annotations

import math
from typing import NamedTuple

from openmythos.config import MythosConfig
from openmythos.roofline import model

# what weights and cache may take of a device's memory; the rest is for activations, workspaces and fragments
USABLE = 0.9
TENSOR = (1, 2, 4, 8)
# weight, gradient, and AdamW's two float32 moments beside a float32 copy
TRAINING_BYTES = 2 + 2 + 4 + 4 + 4


class Layout(NamedTuple):
    """Devices and their grid: `tensor` cut every matrix, `experts` groups hold different routed experts.

    The `experts` groups are data parallel in everything but the experts. `weights` bytes lie on each device, `cache`
    bytes are free beside them.
    """

    devices: int
    tensor: int
    experts: int
    weights: float
    cache: float


def layout(cfg: MythosConfig, item: int, memory: float, tensor: int) -> Layout | None:
    """The fewest devices with this tensor-parallel width, or None where the width does not divide the model."""
    if cfg.n_heads % tensor or cfg.expert_dim % tensor:
        return None
    routed = model.routed_parameters(cfg) * item
    dense = model.parameters(cfg) * item - routed
    usable = USABLE * memory
    for groups in (count for count in range(1, cfg.n_experts + 1) if cfg.n_experts % count == 0):
        weights = (dense + routed / groups) / tensor
        if weights < usable:
            return Layout(tensor * groups, tensor, groups, weights, usable - weights)
    return None


def layouts(cfg: MythosConfig, item: int, memory: float) -> list[Layout]:
    """One layout for each tensor-parallel width that works, the fewest devices first."""
    found = [layout(cfg, item, memory, tensor) for tensor in TENSOR]
    return sorted((one for one in found if one is not None), key=lambda one: (one.devices, one.tensor))


def training_devices(cfg: MythosConfig, memory: float) -> int:
    """Devices whose memory holds weights, gradients and AdamW's state, all sharded; activations come on top."""
    return math.ceil(model.parameters(cfg) * TRAINING_BYTES / (USABLE * memory))
