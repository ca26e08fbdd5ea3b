"""Upstream's own package as the oracle: pairs of an upstream model and ours with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import openmythos
from tests.models import config, fields, randomise

upstream = pytest.importorskip("open_mythos.main", reason="the oracle, the package open-mythos, is not installed")
# Upstream's other attention implementation always computes in bfloat16.
upstream._HAS_FLASH_ATTN = False


def upstream_config(attn_type: str = "mla", **changes: object) -> object:
    """Upstream's config of a small model."""
    return upstream.MythosConfig(**fields(attn_type, **changes))


def pair(attn_type: str = "mla", seed: int = 0, **changes: object) -> tuple[nn.Module, openmythos.OpenMythos]:
    """(upstream's model, ours) with the same random weights, in evaluation mode."""
    theirs = upstream.OpenMythos(upstream_config(attn_type, **changes))
    randomise(theirs, seed)
    ours = openmythos.OpenMythos(config(attn_type, **changes))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs.eval(), ours.eval()


def upstream_named(model: openmythos.OpenMythos, values: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """Tensors by our parameter names, renamed to upstream's, with stacked experts split."""
    renamed = {}
    for name, value in values.items():
        if name.endswith("ffn.gate_up"):
            for expert in range(value.shape[0]):
                for part, matrix in zip(("gate", "up"), value[expert], strict=True):
                    renamed[f"{name.removesuffix('gate_up')}routed_experts.{expert}.{part}.weight"] = matrix
        elif name.endswith("ffn.down"):
            for expert in range(value.shape[0]):
                renamed[f"{name.removesuffix('down')}routed_experts.{expert}.down.weight"] = value[expert]
        else:
            renamed[name] = value
    return renamed


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """{upstream's name: gradient} of every parameter, zeros for missing gradients."""
    found = {
        name: torch.zeros_like(part) if part.grad is None else part.grad for name, part in model.named_parameters()
    }
    return upstream_named(model, found) if isinstance(model, openmythos.OpenMythos) else found
