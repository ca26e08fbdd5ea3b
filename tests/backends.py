"""The rows of the dispatch table as test parameters, the CPU kernels once for each instruction set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch

from openmythos import dispatch
from openmythos.backends import library

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
    """A backend of one op on one device, and the instruction set it has to use, if it has several."""

    op: str
    backend: str
    device: str
    isa: str | None = None

    @property
    def found(self) -> dispatch.Backend:
        return next(row for row in dispatch.rows(self.op, self.device) if row.name == self.backend)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Switch to the row's instruction set for the block."""
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
        """Run the row on these arguments; the test is skipped with the row's own reason if it cannot serve them."""
        row = self.found
        reason = row.supports(*args)
        if reason is not None:
            pytest.skip(f"{self.backend}: {reason}")
        with self.active(), torch.no_grad():
            return row.call(*args)


def rows(op: str, device: str = "cpu") -> list:
    """pytest parameters, one for each backend of `op` on `device` and each instruction set of the CPU kernels."""
    params = []
    for row in dispatch.rows(op, device):
        variants = isa_variants() if row.name == "cpu" else []
        for isa in variants or [None]:
            name = row.name if isa is None else f"{row.name}-{isa}"
            params.append(pytest.param(Row(op, row.name, device, isa), id=name))
    return params


def each_row(op: str, device: str = "cpu") -> Callable:
    """Decorator: run the test once for each backend of `op`."""
    return pytest.mark.parametrize("row", rows(op, device))
