"""Runs the gfx1151 code objects on the emulator, through the ops, the plans, the launcher and a fake driver.

Each kernel runs between guards and is compared with the float64 reference under tests/tolerances.py;
tests/golden/cpp/OP.json records the builds that ran.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Sequence

import torch

from tests import golden
from tests.cases import doubled, listed
from tests.tolerances import assert_close, errors
from tools import code_objects
from tools import gfx1151_emulator as emulator
from tools.recording_driver import FakeOps

GUARD = 64


def _guarded(x: object, buffers: list[torch.Tensor]) -> object:
    """The tensor inside a buffer whose other elements are NaN, with the same alignment."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or not x.is_contiguous() or x.numel() == 0:
        return x
    buffer = torch.full((x.numel() + 2 * GUARD,), float("nan"), dtype=x.dtype)
    buffer[GUARD:-GUARD] = x.flatten()
    buffers.append(buffer)
    return buffer[GUARD:-GUARD].view(x.shape)


class Emulated:
    """Runs calls of `tests.native.calls` on the emulator; `kernels` lists what was launched."""

    def __init__(self, fake: FakeOps) -> None:
        self.fake, self.kernels, self.instructions = fake, [], {}
        self.objects, self.ops = {}, {}
        for path in fake.folder.glob("*.hsaco"):
            for name in code_objects.kernels_of(path):
                self.objects[name], self.ops[name] = path.read_bytes(), path.name.split(".")[0]

    def run(self, kernel, grid, threads, shared, stream, params) -> None:
        data = self.objects[kernel]
        size = code_objects.amd_facts(data)[kernel].argument_bytes
        assert stream == 0x57000, "torch's current stream"
        ran = emulator.launch(data, kernel, grid, (threads,), [ctypes.string_at(params, size)], dynamic_lds=shared)
        self.kernels.append(kernel)
        self.instructions[kernel] = ran.instructions

    def call(self, function: Callable, args: Sequence[object]) -> list[torch.Tensor]:
        buffers: list[torch.Tensor] = []
        moved = [_guarded(x, buffers) for x in args]
        with self.fake.driver.running(self.run):
            found = function(*moved)
        for buffer in buffers:
            assert buffer[:GUARD].isnan().all(), "wrote before a tensor"
            assert buffer[-GUARD:].isnan().all(), "wrote after a tensor"
        return [] if found is None else listed(found)

    def check(
        self, function: Callable, truth: Callable, args: Sequence[object], dtypes: Sequence[torch.dtype]
    ) -> list[torch.Tensor]:
        """Check every output against the tolerances of its dtype, and record the kernels with the largest error."""
        first = len(self.kernels)
        found = self.call(function, args)
        exact, plain = listed(truth(*doubled(args))), listed(truth(*args))
        for index, (mine, true, other, dtype) in enumerate(zip(found, exact, plain, dtypes, strict=True)):
            assert_close(f"output {index}", mine, true, other, dtype)
        worst = max((errors(a, b).frobenius for a, b in zip(found, exact, strict=True)), default=0.0)
        for kernel in self.kernels[first:]:
            row = {
                "kernel": kernel,
                "sha256": hashlib.sha256(self.objects[kernel]).hexdigest(),
                "error": float(f"{worst:.1e}"),
                "instructions": self.instructions[kernel],
            }
            golden.record("cpp", self.ops[kernel], [row])
        return found
