"""The entries of the dispatch table as test parameters, the CPU kernels once for each instruction set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch

from openmythos import dispatch
from openmythos.backends import library, triton
from tools import gfx1151_emulator as emulator

ISA_ORDER = ("avx2", "avx512", "avx512bf16")


def isa_variants() -> list[str]:
    """Instruction sets that the C++ CPU kernels can be switched to here; empty without the library."""
    if library.missing() is not None:
        return []
    namespace = torch.ops.openmythos_native
    first = namespace.isa()
    found = []
    for name in ISA_ORDER:
        try:
            namespace.set_isa(name)
        except RuntimeError:
            continue
        found.append(name)
    namespace.set_isa(first)
    return found


class Entry(NamedTuple):
    """A backend of one op on one device, and the instruction set that it has to use, if it has several.

    `emulated`: kernels for gfx1151, executed on CPU tensors by the emulator.
    """

    op: str
    backend: str
    device: str
    isa: str | None = None
    emulated: bool = False

    @property
    def found(self) -> dispatch.Entry:
        return next(entry for entry in dispatch.entries(self.op, self.device) if entry.name == self.backend)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Switch to the entry's instruction set for the block, or to the emulator."""
        if self.emulated:
            from openmythos.triton_kernels.launch import executing
            from tools.gfx1151_emulator.executor import GFX1151, Executor

            with executing(GFX1151, Executor()):
                yield
            return
        if self.isa is None:
            yield
            return
        before = torch.ops.openmythos_native.isa()
        torch.ops.openmythos_native.set_isa(self.isa)
        try:
            yield
        finally:
            torch.ops.openmythos_native.set_isa(before)

    def call(self, *args: object) -> object:
        """Run the backend on the op's arguments; skip the test with the backend's reason if it cannot serve them."""
        entry = self.found
        with self.active(), torch.no_grad():
            call = dispatch.builder(self.op)(*args)
            reason = entry.supports(call)
            if reason is not None:
                pytest.skip(f"{self.backend}: {reason}")
            return entry.run(call)


def can_emulate() -> bool:
    """Whether Triton's kernels can be executed as gfx1151 code here."""
    return triton.missing() is None and not triton.INTERPRETED and emulator.missing() is None


def entries(op: str, device: str = "cpu") -> list:
    """pytest parameters, one for each backend of `op` on `device` and each instruction set of the CPU kernels.

    If tinygrad's emulator is available, Triton's kernels also run as gfx1151 code; these tests are slow.
    """
    params = []
    for entry in dispatch.entries(op, device):
        variants = isa_variants() if (entry.name, device) == ("cpp", "cpu") else []
        for isa in variants or [None]:
            name = entry.name if isa is None else f"{entry.name}-{isa}"
            params.append(pytest.param(Entry(op, entry.name, device, isa), id=name))
    if device == "cpu" and can_emulate() and any(entry.name == "triton" for entry in dispatch.entries(op, "cuda")):
        emulated = Entry(op, "triton", "cuda", emulated=True)
        params.append(pytest.param(emulated, id="triton-gfx1151", marks=pytest.mark.slow))
    return params


def each_entry(op: str, device: str = "cpu") -> Callable:
    """Decorator: run the test once for each backend of `op`."""
    return pytest.mark.parametrize("entry", entries(op, device))
