"""What the checkpoint tests share: models to save, and comparing two models bit by bit."""

from __future__ import annotations

import torch
from torch import nn

import openmythos
from tests.models import small_model

ATTENTION = ("mla", "gqa")
DTYPES = (torch.float32, torch.bfloat16)


def model_of(attn_type: str = "mla", dtype: torch.dtype = torch.float32, **changes: object) -> openmythos.OpenMythos:
    """A small model whose router bias is not zero, in `dtype`."""
    return small_model(attn_type, **changes).to(dtype)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict without the rotary tables, copied."""
    return {name: value.clone() for name, value in model.state_dict().items() if not value.is_complex()}


def assert_same(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    """Same names in the same order, same dtypes, same bits."""
    found = weights(model)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name
