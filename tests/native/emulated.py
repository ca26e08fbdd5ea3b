"""Runs the gfx1151 code objects on the emulator, through the ops, the plans, the launcher and a fake driver.

Each kernel runs between guards and is compared with the float64 reference under tests/tolerances.py;
`executed/OP.json` records the builds that ran.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
from collections.abc import Callable, Sequence

import torch

from tests.cases import doubled, listed
from tests.native import golden
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
            _record(self.ops[kernel], self.objects[kernel], kernel, worst, self.instructions[kernel])
        return found


def _record(op: str, data: bytes, kernel: str, error: float, instructions: int) -> None:
    """Record the run, and drop code objects that the golden table no longer has."""
    digest = hashlib.sha256(data).hexdigest()
    current = {row["sha256"] for row in golden.read(op).get("gfx1151", {}).values()}
    if digest not in current:
        return
    with (golden.EXECUTED / f"{op}.json").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        table = golden.read(op, golden.EXECUTED) if lock.tell() else {}
        new = {sha: dict(kernels) for sha, kernels in table.items() if sha in current}
        # Keep the first run, so that running the tests again changes no file.
        new.setdefault(digest, {}).setdefault(kernel, {"error": float(f"{error:.1e}"), "instructions": instructions})
        if new != table:
            golden.write(op, new, golden.EXECUTED)
