"""What all rows of the Triton backend share: when they exist, when they can serve, and how they are registered."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable

import torch

from openmythos.backends.flat import register_experts, register_flat
from openmythos.dispatch import Supports

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)


@functools.cache
def missing() -> str | None:
    """The reason why no kernel can run in this process, or None."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    if importlib.util.find_spec("openmythos.triton_kernels") is None:
        return "openmythos.triton_kernels is not installed: install openmythos, editable or not"
    return None


def why_not(*tensors: torch.Tensor | None) -> str | None:
    """The reason that holds for every op: no Triton, a GPU or dtype without kernels, rows that are not contiguous."""
    reason = missing()
    if reason is not None:
        return reason
    given = [tensor for tensor in tensors if tensor is not None]
    if any(tensor.stride(-1) != 1 and tensor.shape[-1] > 1 for tensor in given):
        return "a tensor's last dimension is not contiguous"
    return dtype_reason(*given) or _target_reason(given[0])


def dtype_reason(*tensors: torch.Tensor) -> str | None:
    """The reason that holds for gradients, which launchers make contiguous: a dtype without kernels."""
    wrong = [tensor.dtype for tensor in tensors if tensor.dtype not in DTYPES]
    return f"dtype {wrong[0]}: the kernels are float32, bfloat16 and float16" if wrong else None


def _target_reason(x: torch.Tensor) -> str | None:
    from openmythos.triton_kernels.launch import unsupported

    return unsupported(x)


def register_row(op: str, kernel: str, supports: Supports) -> None:
    """Register `triton_kernels.<module>.<function>`, given as "module.function", for `op` on every device."""
    module, function = f"openmythos.triton_kernels.{kernel}".rsplit(".", 1)

    @functools.cache
    def found() -> Callable:
        return getattr(importlib.import_module(module), function)

    def call(*args: object) -> object:
        return found()(*args)

    names = ("mla_absorbed", "mla_decompressed") if op == "mla_attention" else (op,)
    for device in DEVICES:
        for name in names:
            register_flat(name, "triton", call, device=device, supports=supports)


def register_expert_rows(routed_supports: Supports, whole_supports: Supports) -> None:
    """Register `triton_kernels.moe.moe_experts` with and without shared experts."""

    def call(*args: object) -> object:
        from openmythos.triton_kernels.moe import moe_experts

        return moe_experts(*args)

    for device in DEVICES:
        register_experts("triton", call, routed_supports, call, whole_supports, device)
