"""Ceilings of machines: bandwidth, FLOP rates and memory, measured here or given."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from openmythos.backends.library import cpu_isa
from openmythos.host import cpu_name, total_memory
from openmythos.ops.cost import Cost
from openmythos.timing import median_seconds

STREAM_BYTES = 256 * 2**20
LINEAR_ROWS, LINEAR_WIDTH = 512, 2048


@dataclass(frozen=True)
class Machine:
    """A name, bytes per second, FLOPs per second by dtype, bytes of memory, and the source of these numbers."""

    name: str
    bandwidth: float
    flops: dict[str, float] = field(hash=False)
    memory: float
    source: str

    def rate(self, dtype: str) -> float:
        """FLOPs per second in `dtype`.

        Raises:
            ValueError: when there is none.
        """
        if dtype not in self.flops:
            raise ValueError(f"dtype={dtype!r}: {self.name} has rates for {', '.join(self.flops)}; pass --flops")
        return self.flops[dtype]

    def floor(self, cost: Cost, dtype: str) -> float:
        """The minimum time in seconds: the larger of moving the bytes and doing the FLOPs."""
        return max(cost.bytes / self.bandwidth, cost.flops / self.rate(dtype))

    def bound(self, cost: Cost, dtype: str) -> str:
        """What bounds the floor: "bytes" or "FLOPs"."""
        return "bytes" if cost.bytes / self.bandwidth >= cost.flops / self.rate(dtype) else "FLOPs"


MACHINES = {
    "h200": Machine(
        "NVIDIA H200", 4.3e12, {"bfloat16": 790e12, "float16": 790e12}, 141e9, "measured: a copy, a matrix product"
    ),
    "gfx1151": Machine(
        "AMD Radeon 8060S (gfx1151)",
        212e9,
        {"bfloat16": 59e12, "float16": 59e12},
        128e9,
        "bandwidth measured by others; FLOP rate: the peak of 40 CUs at 2.9 GHz",
    ),
}


def device_name() -> str:
    """The GPU, or the processor, its instruction set and the thread count, as the name of a folder."""
    if torch.cuda.is_available():
        words = torch.cuda.get_device_name()
    else:
        words = f"{cpu_name()} {cpu_isa() or 'torch'} {torch.get_num_threads()} threads"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def _measure_gpu(say: Callable[[str], None]) -> Machine:
    """The GPU's ceilings: a copy of 4 GB, and matrix products of 8192 x 8192 x 8192."""
    device = torch.device("cuda")
    memory = float(torch.cuda.get_device_properties(device).total_memory)
    say("measuring a copy")
    source = torch.empty(2**31, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / median_seconds(lambda: target.copy_(source))
    flops = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        say(f"measuring a matrix product in {name}")
        x, y = (torch.randn(8192, 8192, device=device).to(dtype) for _ in range(2))
        flops[name] = 2 * 8192**3 / median_seconds(lambda x=x, y=y: x @ y)
    return Machine(torch.cuda.get_device_name(), bandwidth, flops, memory, "measured now")


def _measure_cpu(say: Callable[[str], None]) -> Machine:
    """This CPU's ceilings: a streaming read of 256 MB, and F.linear at 512 rows, in about three seconds."""
    say("measuring a streaming read")
    block = torch.ones(STREAM_BYTES // 4)
    bandwidth = STREAM_BYTES / median_seconds(block.sum)
    memory = float(total_memory())
    flops = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        say(f"measuring a matrix product in {name}")
        x = torch.randn(LINEAR_ROWS, LINEAR_WIDTH).to(dtype)
        weight = torch.randn(4 * LINEAR_WIDTH, LINEAR_WIDTH).to(dtype)
        flops[name] = (
            2 * x.shape[0] * weight.numel() / median_seconds(lambda x=x, weight=weight: F.linear(x, weight), 3)
        )
    # without bfloat16 instructions, widening to float32 is fastest
    flops["bfloat16"] = max(flops.values())
    return Machine(cpu_name(), bandwidth, flops, memory, f"measured now, {torch.get_num_threads()} threads")


def measure(say: Callable[[str], None] = lambda _text: None) -> Machine:
    """Measure the ceilings of the GPU, or of the CPU where there is no GPU, in a few seconds."""
    return _measure_gpu(say) if torch.cuda.is_available() else _measure_cpu(say)
