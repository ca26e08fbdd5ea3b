"""The rows of the dispatch table as test parameters, the CPU kernels once for each instruction set."""

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
    """Instruction sets that the native CPU kernels can be switched to here; empty without the library."""
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


class Row(NamedTuple):
    """A backend of one op on one device, and the instruction set it has to use, if it has several.

    `emulated`: kernels for gfx1151, executed on CPU tensors by the emulator.
    """

    op: str
    backend: str
    device: str
    isa: str | None = None
    emulated: bool = False

    @property
    def found(self) -> dispatch.Entry:
        return next(row for row in dispatch.entries(self.op, self.device) if row.name == self.backend)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Switch to the row's instruction set for the block, or to the emulator."""
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
        """Run the row on the op's arguments; the test is skipped with the row's own reason if it cannot serve them."""
        row = self.found
        with self.active(), torch.no_grad():
            call = dispatch.builder(self.op)(*args)
            reason = row.supports(call)
            if reason is not None:
                pytest.skip(f"{self.backend}: {reason}")
            return row.run(call)


def can_emulate() -> bool:
    """Whether Triton's kernels can be executed as gfx1151 code here."""
    return triton.missing() is None and not triton.INTERPRETED and emulator.missing() is None


def rows(op: str, device: str = "cpu") -> list:
    """pytest parameters, one for each backend of `op` on `device` and each instruction set of the CPU kernels.

    Where tinygrad's emulator is at hand, Triton's kernels come a second time, as gfx1151 code; these tests are slow.
    """
    params = []
    for row in dispatch.entries(op, device):
        variants = isa_variants() if (row.name, device) == ("cpp", "cpu") else []
        for isa in variants or [None]:
            name = row.name if isa is None else f"{row.name}-{isa}"
            params.append(pytest.param(Row(op, row.name, device, isa), id=name))
    if device == "cpu" and can_emulate() and any(row.name == "triton" for row in dispatch.entries(op, "cuda")):
        emulated = Row(op, "triton", "cuda", emulated=True)
        params.append(pytest.param(emulated, id="triton-gfx1151", marks=pytest.mark.slow))
    return params


def each_row(op: str, device: str = "cpu") -> Callable:
    """Decorator: run the test once for each backend of `op`."""
    return pytest.mark.parametrize("row", rows(op, device))
