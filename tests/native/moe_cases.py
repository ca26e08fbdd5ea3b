"""Calls of moe_experts for the GPU kernels: with shared experts, of padded rows, and of many rows."""

from __future__ import annotations

import pytest
import torch

from tests.cases import randn
from tests.cases.moe import experts
from tests.cases.shared_experts import ROUTED, triples
from tests.native import calls

SHORT = {torch.bfloat16: "bf16", torch.float16: "f16"}
each_half = pytest.mark.parametrize("dtype", SHORT, ids=SHORT.values())

# More rows, or more slots, than the streamed kernels support: (rows, columns, hidden units, experts, choices), and the
# widths of the shared experts.
SIZES = {
    "17 rows": ((17, 72, 136, 5, 2), ()),
    "most of 64 experts": ((100, 136, 72, 64, 4), ()),
    "tiles that are not full": ((300, 72, 40, 7, 3), (88, 200)),
    "eight numbers": ((33, 8, 8, 1, 1), ()),
    "a shared expert alone is wide": ((20, 264, 8, 3, 1), (8, 136, 24)),
    "few rows of many choices": ((8, 40, 24, 64, 40), (64,)),
    "512 experts": ((40, 40, 24, 512, 8), ()),
    "1024 experts": ((19, 24, 16, 1024, 2), ()),
}


def case(name: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """The arguments, with the shared matrices flat at the end."""
    size, widths = SIZES[name]
    return with_shared(experts(*size, dtype), *widths)


def with_shared(args: list[torch.Tensor], *widths: int) -> list[torch.Tensor]:
    """The arguments followed by shared experts of these widths."""
    d, dtype = args[0].shape[1], args[0].dtype
    for width in widths:
        args += [randn(width, d, dtype=dtype, scale=d**-0.5) for _ in range(2)]
        args.append(randn(d, width, dtype=dtype, scale=width**-0.5))
    return args


def flat(*args: torch.Tensor) -> torch.Tensor:
    """moe_experts with the shared matrices as flat arguments."""
    return calls.moe_experts(*args[:ROUTED], triples(args))


def launched(dtype: torch.dtype, slots: bool = True) -> list[str]:
    """The kernels of a call, in order."""
    parts = [*(("count", "place") if slots else ()), *(f"{part}_{SHORT[dtype]}" for part in ("up", "down", "sum"))]
    return [f"openmythos_moe_grouped_{part}" for part in parts]


def spread(x: torch.Tensor) -> torch.Tensor:
    """The same values in rows that are further apart, still 16-byte aligned, with NaN between them."""
    buffer = torch.full((*x.shape[:-1], x.shape[-1] + 16), float("nan"), dtype=x.dtype)
    buffer[..., 8:-8] = x
    return buffer[..., 8:-8]
