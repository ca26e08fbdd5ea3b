"""Runs the launches that the recording driver records as CUDA source on the CPU, against the reference."""

from __future__ import annotations

from tests.native.emulated import Emulated
from tools.cuda_on_host import HostKernels
from tools.recording_driver import FakeOps


class OnHost(Emulated):
    """Runs launches as CUDA source on the CPU; nothing is recorded."""

    def __init__(self, fake: FakeOps, op: str, hopper: bool = False) -> None:
        super().__init__(fake)
        self._kernels = HostKernels(op, hopper)
        self.launched = self._kernels.launched

    def run(self, kernel, grid, threads, shared, stream, params) -> None:
        self._kernels.launch(kernel, grid, threads, shared, params)
