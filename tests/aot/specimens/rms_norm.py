"""rms_norm at the variants' widths: residual stream, latents; float32 stream through 16-bit weights too."""

from __future__ import annotations

from functools import partial

import torch

from openmythos import reference
from openmythos.triton_kernels import rms_norm
from tests.aot.specimens import Specimen, by_arguments

EPS = 1e-6
FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16


def _norm(width: int, x: torch.dtype, weight: torch.dtype, device: str, rows: int) -> tuple:
    normal = partial(torch.randn, device=device)
    return normal(rows, width).to(x), 1 + 0.3 * normal(width).to(weight), EPS, weight


def _norm_add(width: int, x: torch.dtype, weight: torch.dtype, device: str, rows: int) -> tuple:
    normed = _norm(width, x, weight, device, rows)
    return normed[0], torch.randn(rows, width, device=device).to(weight), *normed[1:]


def _backward(width: int, x: torch.dtype, weight: torch.dtype, device: str, rows: int) -> tuple:
    normed = _norm(width, x, weight, device, rows)
    return torch.randn(rows, width, device=device).to(weight), *normed[:3]


OPS = {
    "rms_norm": (by_arguments("rms_norm", rms_norm.rms_norm), reference.rms_norm, _norm),
    "rms_norm_add": (by_arguments("rms_norm_add", rms_norm.rms_norm_add), reference.rms_norm_add, _norm_add),
    "rms_norm_backward": (
        by_arguments("rms_norm_backward", rms_norm.rms_norm_backward),
        reference.rms_norm_backward,
        _backward,
    ),
}


def _specimen(op: str, width: int, x: torch.dtype, weight: torch.dtype) -> Specimen:
    call, truth, inputs = OPS[op]
    kinds = "-".join(str(dtype).removeprefix("torch.") for dtype in (x, weight))
    name = f"rms_norm/{op}/{width}/{kinds}"
    return Specimen(name, call, truth, partial(inputs, width, x, weight), (8192,), (5,), weight)


SPECIMENS = [
    *(_specimen(op, 2048, FLOAT, BFLOAT) for op in OPS),
    *(_specimen(op, width, FLOAT, BFLOAT) for op in OPS for width in (512, 1024, 4096, 8192, 16384)),
    *(_specimen(op, 2048, dtype, dtype) for op in OPS for dtype in (FLOAT, HALF, BFLOAT)),
    *(_specimen("rms_norm", width, BFLOAT, BFLOAT) for width in (256, 384, 512, 768)),
    *(_specimen("rms_norm_add", width, FLOAT, BFLOAT) for width in (3072, 6144, 12288)),
]
