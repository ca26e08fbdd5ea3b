"""What is compiled ahead of time: launchers at the shapes of the model's variants, one file an op.

A file here defines SPECIMENS. The first of each function is compiled by every test run, the others by the slow one. A
specimen has two sizes. At its real size the launchers get meta tensors, and the code objects that come out are rows of
tests/golden/triton/<op>.json. At its small size they get CPU tensors of few rows, and the emulator of gfx1151 executes
the same code objects, byte for byte.

Few rows give the same code object only where the code does not know the number of rows. So in a kernel:

- what changes from call to call (rows, tokens, lengths) is a run-time argument named in `do_not_specialize`: without
  it a number that is 1, or a multiple of 16, is compiled in;
- what belongs to the model (widths, head sizes, block sizes) may be a constexpr or specialised; both sizes share it;
- what a launcher picks by the number of rows comes from `configs.config`: the entries that the real size took are
  pinned while the small one runs.

A tensor whose real storage has 2 GiB or more addresses with 64 bits; `large` gives a small one such a storage.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import torch

from openmythos import dispatch


class Specimen(NamedTuple):
    """One call at a real and at a small size.

    `inputs(device, *size)` makes the arguments of `call` and `reference`, with torch.randn and the like, on "meta" or
    "cpu". `call` returns the outputs; one that works in place returns what it changed, from clones. `reference` is the
    same function of openmythos.reference, and `dtype` the storage dtype whose tolerance holds.
    """

    name: str
    call: Callable
    reference: Callable
    inputs: Callable[..., tuple]
    real: tuple
    small: tuple
    dtype: torch.dtype


def by_arguments(op: str, launch: Callable) -> Callable:
    """`launch`, which takes the typed call of `op`, as a function of the op's arguments."""
    build = dispatch.builder(op)
    return lambda *args: launch(build(*args))


def large(x: torch.Tensor) -> torch.Tensor:
    """x as a view of a storage of more than 2 GiB, whose other pages are never touched."""
    spare = 2**31 // x.element_size()
    view = torch.empty(spare + x.numel(), dtype=x.dtype, device=x.device)[spare:].view(x.shape)
    return view if x.is_meta else view.copy_(x)


def load() -> dict[str, list[Specimen]]:
    """{op: its specimens}, of every file in this folder."""
    found = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        found[module] = importlib.import_module(f"{__name__}.{module}").SPECIMENS
    return found
