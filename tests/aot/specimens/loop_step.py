"""loop_step at the variants' widths and ranks: decode and prefill, one depth or one a row, and the last loop."""

from __future__ import annotations

from functools import partial

import torch

from openmythos import reference
from openmythos.triton_kernels import loop_step
from tests.aot.specimens import Specimen, by_arguments

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
LOOPS, THRESHOLD, EPS = 16, 0.9, 1e-6


def _inputs(width: int, rank: int, dtype: torch.dtype, depth: int | None, last: bool, device: str, rows: int) -> tuple:
    normal = partial(torch.randn, device=device)
    state = [normal(rows, width).to(dtype) for _ in range(3)]
    state += [normal(rows, width), 1.2 * torch.rand(rows, device=device)]
    lora = (normal(rank, width) * width**-0.5, normal(LOOPS, rank), normal(rank, width) * 0.3)
    heads = (normal(width) * width**-0.5, normal(1) - 1, None if last else 1 + 0.2 * normal(width))
    t, t_rows = depth or 0, None
    if depth is None:
        t_rows = torch.randint(0, 2 * LOOPS, (rows,), dtype=torch.int32, device=device)
    vectors = torch.rand(width, device=device), 0.3 * normal(width)
    return *state, *vectors, *lora, *heads, t, t_rows, THRESHOLD, EPS, width // 8


def _backward_inputs(*args: object) -> tuple:
    h, e, block_out, h_out, cum_p, *rest = _inputs(*args)
    grads = (torch.randn(part.shape, device=part.device).to(part.dtype) for part in (h, h_out, cum_p, e))
    return *grads, h, e, block_out, cum_p, *rest


OPS = {
    "loop_step": (by_arguments("loop_step", loop_step.loop_step), reference.loop_step, _inputs),
    "loop_step_backward": (
        by_arguments("loop_step_backward", loop_step.loop_step_backward),
        reference.loop_step_backward,
        _backward_inputs,
    ),
}


def _specimen(
    width: int,
    rank: int,
    dtype: torch.dtype,
    rows: int = 8192,
    small: int = 5,
    depth: int | None = 3,
    last: bool = False,
    op: str = "loop_step",
) -> Specimen:
    call, truth, inputs = OPS[op]
    kind = str(dtype).removeprefix("torch.")
    extra = ("-rows" if depth is None else "") + ("-last" if last else "")
    name = f"loop_step/{op}/{width}-{rank}/{rows}/{kind}{extra}"
    make = partial(inputs, width, rank, dtype, depth, last)
    return Specimen(name, call, truth, make, (rows,), (small,), dtype)


_backward = partial(_specimen, op="loop_step_backward")


DTYPES = (FLOAT, BFLOAT, HALF)
SPECIMENS = [
    *(_specimen(2048, 8, dtype) for dtype in DTYPES),
    *(_specimen(2048, 8, dtype, depth=None) for dtype in DTYPES),
    *(_specimen(2048, 8, dtype, rows=1, small=1) for dtype in DTYPES),
    _specimen(2048, 8, FLOAT, last=True),
    _specimen(2048, 8, FLOAT, rows=32, depth=None),
    *(_specimen(width, 8, dtype) for width in (512, 1024) for dtype in DTYPES),
    _specimen(3072, 8, FLOAT),
    # the products with the LoRA matrices inside for a few rows, outside for many
    *(_specimen(4096, 16, dtype, rows=1, small=1) for dtype in DTYPES),
    *(_specimen(4096, 16, dtype, small=65) for dtype in DTYPES),
    _specimen(4096, 16, BFLOAT, small=65, depth=None),
    *(_specimen(8192, 64, dtype) for dtype in DTYPES),
    *(_specimen(16384, 256, dtype) for dtype in DTYPES),
    *(_specimen(width, rank, FLOAT) for width, rank in ((6144, 32), (12288, 128))),
    _specimen(16384, 256, BFLOAT, depth=None),
    _specimen(16384, 256, FLOAT, last=True),
    *(_backward(2048, 8, dtype) for dtype in DTYPES),
    *(_backward(2048, 8, dtype, depth=None) for dtype in (FLOAT, BFLOAT)),
    _backward(2048, 8, FLOAT, last=True),
    *(_backward(width, 8, dtype) for width in (512, 1024, 3072) for dtype in DTYPES),
    *(_backward(4096, 16, dtype, small=65) for dtype in DTYPES),
    *(_backward(16384, 256, dtype) for dtype in DTYPES),
    _backward(16384, 256, BFLOAT, depth=None),
    _backward(8192, 64, FLOAT, last=True),
]
