"""The experts at the variants' widths: routing, many rows and few, shared experts beside them, and the backward.

At their small size the experts are smaller too: widths are run-time numbers, of which only the divisibility counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from openmythos import reference
from openmythos.triton_kernels import moe
from tests.aot.specimens import Specimen, by_arguments, large
from tests.cases.shared_experts import ROUTED, routed_and_shared, triples

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
# Bytes from which a storage is addressed with 64 bits.
LARGE = 2**31


class Shape(NamedTuple):
    """Columns, hidden units and number of the experts, choices a row, shared experts (k times as wide)."""

    dim: int
    hidden: int
    experts: int
    k: int
    shared: int = 0


# {variant: (its shape, one with the same divisibility by every block)}; blocks of one row are the longest
SHAPES = {
    "1b": (Shape(2048, 2048, 64, 4), Shape(256, 256, 64, 4)),
    "3b": (Shape(3072, 4096, 64, 4), Shape(256, 256, 64, 4)),
    "10b": (Shape(4096, 5632, 128, 4), Shape(256, 256, 128, 4)),
    # an eighth of the experts, as eight GPUs hold them
    "10b-part": (Shape(4096, 5632, 16, 4), Shape(256, 256, 16, 4)),
    "50b": (Shape(6144, 9728, 256, 4), Shape(256, 256, 256, 4)),
    "100b": (Shape(8192, 13568, 256, 8), Shape(256, 256, 256, 8)),
    "1b-half": (Shape(2048, 2048, 32, 4), Shape(256, 256, 32, 4)),
    "narrow": (Shape(1024, 512, 8, 2), Shape(256, 256, 8, 2)),
    "odd": (Shape(2055, 1031, 61, 3), Shape(263, 135, 61, 3)),
}
ONE_ROW = {
    "1b": Shape(1024, 1024, 64, 4),
    "3b": Shape(1024, 1024, 64, 4),
    "10b": Shape(1024, 512, 128, 4),
    "50b": Shape(1024, 512, 256, 4),
}


def _matrix(device: str, real: tuple[int, ...], dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Weights of a shape, in a storage as large as `real` ones have."""
    made = (torch.randn(shape, device=device) * shape[-1] ** -0.5).to(dtype)
    nbytes = dtype.itemsize
    for size in real:
        nbytes *= size
    return large(made) if nbytes >= LARGE and made.numel() * dtype.itemsize < LARGE else made


def _experts(real: Shape, dtype: torch.dtype, device: str, rows: int, *shape: int) -> list[torch.Tensor]:
    """(x, ids, weights, gate_up, down), and the shared experts' matrices."""
    dim, hidden, experts, k, shared = Shape(*shape)
    x = torch.randn(rows, dim, device=device).to(dtype)
    ids = torch.rand(rows, experts, device=device).topk(k).indices.int()
    weights = torch.softmax(torch.randn(rows, k, device=device), dim=-1)
    matrix = partial(_matrix, device)
    gate_up = matrix((real.experts, 2, real.hidden, real.dim), dtype, experts, 2, hidden, dim)
    down = matrix((real.experts, real.dim, real.hidden), dtype, experts, dim, hidden)
    made = [x, ids, weights, gate_up, down]
    for _ in range(shared):
        made += [matrix((k * real.hidden, real.dim), dtype, k * hidden, dim) for _ in range(2)]
        made.append(matrix((real.dim, k * real.hidden), dtype, dim, k * hidden))
    return made


def _backward(keep: bool, real: Shape, dtype: torch.dtype, device: str, rows: int, *shape: int) -> tuple:
    args = _experts(real, dtype, device, rows, *shape)
    grad = torch.randn(args[0].shape, device=device).to(dtype)
    hidden = None
    if keep:
        # ids on "meta" do not say which rows an expert takes
        empty = args[0].new_empty((*args[1].shape, *args[3].shape[1:3]))
        hidden = empty if grad.is_meta else reference.moe_experts_hidden(*args)[1]
    return grad, *args, hidden


EXPERTS = by_arguments("moe_experts", moe.moe_experts)
BACKWARD = by_arguments("moe_experts_backward", moe.moe_experts_backward)


def _with_shared(*args: torch.Tensor) -> torch.Tensor:
    return EXPERTS(*args[:ROUTED], triples(args))


def _recomputed(*args: object) -> tuple[torch.Tensor, ...]:
    """The truth multiplies in float64 what was given rounded."""
    return reference.moe_experts_backward(*args[:-1])


CALLS: dict[str, tuple[Callable, Callable, Callable]] = {
    "experts": (_with_shared, routed_and_shared, _experts),
    "hidden": (by_arguments("moe_experts_hidden", moe.moe_experts_hidden), reference.moe_experts_hidden, _experts),
    "backward": (BACKWARD, _recomputed, partial(_backward, True)),
    "backward-recomputed": (BACKWARD, _recomputed, partial(_backward, False)),
}


def _specimen(what: str, shape: str, dtype: torch.dtype, rows: int = 8192, shared: int = 0) -> Specimen:
    call, truth, inputs = CALLS[what]
    real, small = SHAPES[shape]
    small = ONE_ROW.get(shape, small) if rows == 1 else small
    real, small = (part._replace(shared=shared) for part in (real, small))
    name = f"moe/{what}/{shape}/{rows}{'-shared' * bool(shared)}/{str(dtype).removeprefix('torch.')}"
    few = rows if rows <= moe.streamed.MAX_ROWS else 37
    return Specimen(name, call, truth, partial(inputs, real, dtype), (rows, *real), (few, *small), dtype)


def _logits(experts: int, k: int, dtype: torch.dtype, device: str, rows: int) -> tuple:
    return torch.randn(rows, experts, device=device).to(dtype), torch.randn(experts, device=device), k


def _route_grad(experts: int, k: int, dtype: torch.dtype, device: str, rows: int) -> tuple:
    ids = torch.rand(rows, experts, device=device).topk(k).indices.int()
    weights = torch.softmax(torch.randn(rows, k, device=device), dim=-1)
    return torch.randn(rows, k, device=device), ids, weights, experts, dtype


def _route(what: str, experts: int, k: int, dtype: torch.dtype, rows: int = 8192) -> Specimen:
    call, truth, inputs = {
        "route": (by_arguments("moe_route", moe.moe_route), reference.moe_route, _logits),
        "route_backward": (
            by_arguments("moe_route_backward", moe.moe_route_backward),
            reference.moe_route_backward,
            _route_grad,
        ),
    }[what]
    name = f"moe/{what}/{experts}-{k}/{rows}/{str(dtype).removeprefix('torch.')}"
    return Specimen(name, call, truth, partial(inputs, experts, k, dtype), (rows,), (min(rows, 37),), dtype)


# experts and choices of the variants, and numbers that are no powers of two
ROUTES = ((64, 4), (128, 4), (256, 8), (512, 8), (384, 8), (61, 3), (1000, 5))

SPECIMENS = [
    *(_route("route", *sizes, BFLOAT) for sizes in ROUTES),
    *(_route("route_backward", *sizes, BFLOAT) for sizes in ROUTES),
    *(_route(what, 64, 4, dtype) for what in ("route", "route_backward") for dtype in (FLOAT, HALF)),
    *(_route("route", *sizes, BFLOAT, rows=1) for sizes in ((64, 4), (512, 8))),
    # many rows
    *(_specimen("experts", shape, BFLOAT, shared=2) for shape in ("1b", "3b", "10b", "odd")),
    *(_specimen("experts", "1b", dtype, shared=2) for dtype in (FLOAT, HALF)),
    *(_specimen("experts", shape, BFLOAT, rows=512, shared=2) for shape in ("1b", "10b")),
    _specimen("experts", "100b", BFLOAT, rows=2048, shared=4),
    _specimen("experts", "narrow", BFLOAT),
    *(_specimen("experts", "odd", dtype) for dtype in (FLOAT, BFLOAT)),
    # one row, and up to 16
    *(_specimen("experts", shape, BFLOAT, rows=1, shared=2) for shape in ("1b", "3b", "10b", "odd")),
    _specimen("experts", "50b", BFLOAT, rows=1, shared=4),
    *(_specimen("experts", "1b", dtype, rows=1, shared=2) for dtype in (FLOAT, HALF)),
    *(_specimen("experts", shape, BFLOAT, rows=16, shared=2) for shape in ("1b", "10b", "odd")),
    _specimen("experts", "50b", BFLOAT, rows=16, shared=4),
    *(_specimen("experts", "1b", dtype, rows=16, shared=2) for dtype in (FLOAT, HALF)),
    # training
    _specimen("hidden", "1b", BFLOAT),
    *(_specimen("backward", "1b", dtype) for dtype in (BFLOAT, HALF)),
    _specimen("backward", "1b-half", FLOAT),
    *(_specimen("backward", shape, BFLOAT) for shape in ("10b-part", "odd")),
    _specimen("backward", "1b", BFLOAT, rows=512),
    *(_specimen("backward-recomputed", shape, dtype) for shape, dtype in (("1b", BFLOAT), ("odd", FLOAT))),
]
