"""Executes launches on the emulator of gfx1151: `executing(TARGETS["gfx1151"], Executor())` runs a whole op.

A launch is compiled as the JIT would compile it for the GPU, and its code object changes the CPU tensors in place. The
kernel gets copies of their storages between guards: a write outside is detected, and a read outside returns NaN.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from openmythos.triton_kernels import aot
from openmythos.triton_kernels.launch import TARGETS, Launch
from tools import gfx1151_emulator as emulator

GFX1151 = TARGETS["gfx1151"]
LANES = 32
GUARD = 4096
GUARD_BYTE = 0xFF
# Storages of more bytes than this are used in place, without guards.
MOST_COPIED = 2**28


class Executed(NamedTuple):
    """One launch: its code object, and the instructions that it executed."""

    kernel: str
    config: str
    sha256: str
    instructions: int
    wmma: int


class _Guarded:
    """A copy of a storage between guards, with the original's alignment."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.original = torch.empty(0, dtype=torch.uint8).set_(storage)
        size = self.original.numel()
        self.memory = torch.full((size + 2 * GUARD + 256,), GUARD_BYTE, dtype=torch.uint8)
        start = GUARD + (self.original.data_ptr() - self.memory.data_ptr() - GUARD) % 256
        self.copy = self.memory[start : start + size]
        self.copy.copy_(self.original)
        self.outside = self.memory[:start], self.memory[start + size :]

    def view(self, like: torch.Tensor) -> torch.Tensor:
        """The tensor `like` in the copy."""
        storage = self.memory.untyped_storage()
        start = self.copy.data_ptr() - self.memory.data_ptr()
        assert start % like.element_size() == 0
        offset = start // like.element_size() + like.storage_offset()
        return torch.empty(0, dtype=like.dtype).set_(storage, offset, like.shape, like.stride())

    def finish(self, kernel: str) -> None:
        """Check the guards, and copy back."""
        for part in self.outside:
            assert (part == GUARD_BYTE).all(), f"{kernel} wrote outside of a tensor"
        self.original.copy_(self.copy)


@contextmanager
def _guarded(args: Sequence[object], kernel: str) -> Iterator[list[object]]:
    """The arguments with every tensor in a guarded copy; tensors that share a storage go on sharing it."""
    storages: dict[int, _Guarded] = {}
    moved = []
    for arg in args:
        if isinstance(arg, torch.Tensor) and 0 < arg.untyped_storage().nbytes() <= MOST_COPIED:
            storage = arg.untyped_storage()
            guarded = storages.setdefault(storage.data_ptr(), _Guarded(storage))
            arg = guarded.view(arg)
        moved.append(arg)
    yield moved
    for guarded in storages.values():
        guarded.finish(kernel)


class Executor:
    """Runs launches one after the other; `executed` lists them."""

    def __init__(self) -> None:
        self.executed: list[Executed] = []

    def __call__(self, launch: Launch) -> None:
        compiled = aot.compile_launch(launch, GFX1151)
        code, kernel = compiled.asm["hsaco"], compiled.metadata.name
        arguments = aot.specialise(launch, GFX1151).arguments
        # Triton appends pointers to scratch memory that no kernel here uses.
        appended = [None] * (emulator.explicit_arguments(code, kernel) - len(arguments))
        block = (LANES * compiled.metadata.num_warps,)
        with _guarded(arguments, kernel) as moved:
            ran = emulator.launch(
                code, kernel, launch.grid, block, [*moved, *appended], dynamic_lds=compiled.metadata.shared
            )
        digest = hashlib.sha256(code).hexdigest()
        self.executed.append(Executed(kernel, aot.label(launch), digest, ran.instructions, ran.matrix))
