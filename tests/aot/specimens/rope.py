"""rope at the variants' heads, forth and back, and the cache rows of new tokens at the variants' latents."""

from __future__ import annotations

from functools import partial

import torch

from openmythos import reference
from openmythos.triton_kernels import rope
from tests.aot.specimens import Specimen, by_arguments

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
DTYPES = (FLOAT, BFLOAT, HALF)
EPS = 1e-6


def _table(positions: int, width: int, device: str) -> torch.Tensor:
    angles = 50 * torch.randn(positions, width // 2, device=device)
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def _heads(
    heads: int, width: int, inverse: bool, dtype: torch.dtype, device: str, batch: int, new: int
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    x = torch.randn(batch, new, heads, width, device=device).to(dtype)
    return x, _table(new, width, device), inverse


def _key(latent: int, width: int, dtype: torch.dtype, device: str, batch: int, new: int) -> tuple:
    """The tail of a projection, shared by all heads."""
    down = torch.randn(batch, new, latent + width, device=device).to(dtype)
    return down[..., None, latent:], _table(new, width, device), False


def _append_inputs(
    latent: int, width: int, placed: bool, dtype: torch.dtype, device: str, batch: int, new: int
) -> tuple:
    down = torch.randn(batch, new, latent + width, device=device).to(dtype)
    weight = 1 + 0.3 * torch.randn(latent, device=device).to(dtype)
    room = 2 * new
    rows = torch.randn(batch, room, latent + width, device=device).to(dtype)
    position = torch.randint(0, new + 1, (batch,), device=device) if placed else None
    return down, weight, _table(room, width, device), rows, position, EPS


def _appended(call, down, weight, cos_sin, rows, position, eps) -> torch.Tensor:
    cache = rows.clone()
    call(down, weight, cos_sin, cache, position, eps)
    return cache


ROTATE = by_arguments("rope", rope.rope)
append = partial(_appended, by_arguments("rope_append_", rope.rope_append_))
append_reference = partial(_appended, reference.rope_append_)


def _name(*parts: object) -> str:
    return "/".join(("rope", *(str(part).removeprefix("torch.") for part in parts)))


def _rope(heads: int, width: int, dtype: torch.dtype, inverse: bool = False) -> Specimen:
    name = _name("rope", f"{heads}x{width}{'-inverse' if inverse else ''}", dtype)
    make = partial(_heads, heads, width, inverse, dtype)
    return Specimen(name, ROTATE, reference.rope, make, (2, 4096), (2, 3), dtype)


def _rope_key(latent: int, width: int, dtype: torch.dtype) -> Specimen:
    name = _name("rope", f"key-{latent}-{width}", dtype)
    return Specimen(
        name,
        by_arguments("rope", rope.rope),
        reference.rope,
        partial(_key, latent, width, dtype),
        (2, 4096),
        (2, 3),
        dtype,
    )


def _append(latent: int, width: int, dtype: torch.dtype, placed: bool = True) -> Specimen:
    name = _name("rope_append_", f"{latent}-{width}{'' if placed else '-first'}", dtype)
    make = partial(_append_inputs, latent, width, placed, dtype)
    return Specimen(name, append, append_reference, make, (2, 4096), (2, 3), dtype)


SPECIMENS = [
    *(_rope(16, 32, dtype) for dtype in DTYPES),
    *(_rope(16, 32, dtype, inverse=True) for dtype in DTYPES),
    *(_rope(32, 64, dtype) for dtype in DTYPES),
    _rope(16, 128, BFLOAT),
    _rope(24, 32, BFLOAT, inverse=True),
    _rope_key(256, 32, BFLOAT),
    *(_append(256, 32, dtype) for dtype in DTYPES),
    *(_append(256, 32, dtype, placed=False) for dtype in DTYPES),
    *(_append(latent, width, BFLOAT) for latent, width in ((384, 32), (512, 64), (1024, 64))),
    _append(512, 64, BFLOAT, placed=False),
]
