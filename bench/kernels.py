"""Resources and occupancy of every compiled GPU kernel: `python -m bench.roofline --kernels`.

Registers, spills and shared memory are read from the golden tables under tests/; nothing here was run on a GPU. The
other columns follow from them: how many waves fit a multiprocessor (AMD: a workgroup processor), and how many bytes
those have in flight in the kernels that stream weights, keys or tiles.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
WAVE, PARTITIONS, MAX_BLOCKS = 32, 4, 32
# bytes a second and multiprocessors of the machines in openmythos.roofline
MEMORY = {"sm90": (4.3e12, 132), "gfx1151": (212e9, 20)}


class Chip(NamedTuple):
    """One multiprocessor: registers of a lane and waves in each quarter of it, and its shared memory."""

    registers: int
    granule: int
    waves: int
    shared: int
    reserved: int  # bytes that the system takes for each block

    def resident(self, registers: int, shared: int, threads: int) -> int:
        """The number of waves of such blocks that fit."""
        each = -(-registers // self.granule) * self.granule
        block, own = -(-threads // WAVE), max(shared + self.reserved, 1)
        blocks = PARTITIONS * min(self.waves, self.registers // each) // block
        return block * min(blocks, self.shared // own, MAX_BLOCKS)


_NVIDIA, _RDNA3 = Chip(512, 8, 16, 228 * 1024, 1024), Chip(1536, 24, 16, 128 * 1024, 0)
CHIPS = {
    "sm80": _NVIDIA._replace(shared=164 * 1024),
    "sm90": _NVIDIA,
    "sm100": _NVIDIA,
    "sm120": _NVIDIA._replace(shared=100 * 1024, waves=12),
    "gfx1100": _RDNA3,
    "gfx1151": _RDNA3,
}


class Shape(NamedTuple):
    """What a code object of C++ kernels does not contain: threads, dynamic shared memory, loads in flight."""

    threads: int
    shared: int = 0
    flight: int = 0  # bytes that a block has in flight


class Kernel(NamedTuple):
    """One line of the table; a Triton kernel's is that of its most demanding code object."""

    name: str
    arch: str
    objects: int
    registers: int
    spills: int
    shared: int
    waves: int
    flight: int  # bytes of a multiprocessor, 0 where the kernel is not made to stream


def _plain(arch: str) -> str:
    """Triton's name "sm90" for nvcc's "sm_90a"."""
    return arch.replace("_", "").removesuffix("a")


def shape(kernel: str, arch: str) -> Shape:
    """How csrc launches a kernel, by its name; kernels of rows as for the 2048 columns of mythos_1b."""
    name, amd = kernel.removeprefix("openmythos_"), arch.startswith("gfx")
    item = 4 if "_f32" in name else 2
    if re.match(r"(loop_step|rms_norm)", name):
        return Shape(2048 // 8)
    if name.startswith("moe_route"):
        return Shape(16 * WAVE)
    if re.match(r"moe_grouped_(up|down)", name):
        # 256 rows of a shared-memory tile; one tile more is in flight than is multiplied
        depth, stages, aligning = (32, 2, 0) if amd else (64, 3, 1024)
        tile = 256 * depth * 2
        return Shape(256, stages * tile + aligning, tile if amd else (stages - 1) * tile)
    if found := re.match(r"moe_streamed_(up|down)_(b?f16_rows16|any|\w+)$", name):
        up, kind = found.group(1) == "up", found.group(2)
        if kind.endswith("16_rows16"):
            return Shape(128, flight=4 * 8192) if up else Shape(512, flight=16 * 4096)
        return Shape(256, flight=8 * (8192 if up else 4096) if kind.endswith("rows1") else 0)
    if found := re.match(r"mla_decompressed_\w+?_(\d+)_(\d+)_(\d+)$", name):
        dn, dr, dv = map(int, found.groups())
        depth, aligning = (32, 0) if amd else (64, 1024)
        stage = 2 * depth * (-(-(dn + dr) // depth) * depth + dv)
        return Shape(256, 2 * stage + aligning, stage)
    if found := re.match(r"mla_absorbed_b?f16_(\d+)_(\d+)(_rows32)?$", name):
        dc, dr = int(found.group(1)), int(found.group(2))
        keys = 16 if amd and (found.group(3) or dc == 1024) else 32
        return Shape(256, flight=keys * (dc + dr) * item)
    return Shape(256)


def _listed(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(root.glob("tests/golden/*/*.json")):
        for arch, specimens in json.loads(path.read_text(encoding="utf-8"))["compiled"].items():
            for rows in specimens.values():
                yield from ((arch, row) for row in rows)


def kernels(arch: str, root: Path = ROOT) -> list[Kernel]:
    """Every kernel of the golden tables for an architecture, by name.

    Raises:
        ValueError: when no table has the architecture.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    known = set()
    for named, row in _listed(root):
        known.add(named)
        if _plain(named) == _plain(arch):
            rows.setdefault(row["kernel"], []).append(row)
    if not rows:
        raise ValueError(f"--arch {arch}: known are {', '.join(sorted(known))}")
    return [_kernel(name, arch, rows[name]) for name in sorted(rows)]


def _kernel(name: str, arch: str, rows: list[dict[str, Any]]) -> Kernel:
    chip, found = CHIPS[_plain(arch)], []
    for row in rows:
        warps = re.search(r"num_warps=(\d+)", row.get("config", ""))
        launched = Shape(WAVE * int(warps.group(1))) if warps else shape(name, arch)
        shared = row["shared"] + launched.shared
        waves = chip.resident(row["registers"], shared, launched.threads)
        flight = launched.flight * waves * WAVE // launched.threads
        found.append(Kernel(name, arch, len(rows), row["registers"], row["spills"], shared, waves, flight))
    return min(found, key=lambda kernel: (kernel.waves, -kernel.registers))._replace(
        spills=max(kernel.spills for kernel in found)
    )


def markdown(arch: str) -> str:
    """The kernels of an architecture as a table."""
    unit = "workgroup processor" if arch.startswith("gfx") else "multiprocessor"
    lines = [
        f"### {arch}: compiled, not run; waves and bytes in flight of one {unit}",
        "",
        "| kernel | code objects | registers | spills | shared memory | waves | in flight |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in kernels(arch):
        flight = f"{row.flight / 1e3:.0f} kB" if row.flight else ""
        counts = f"{row.objects} | {row.registers} | {row.spills} | {row.shared:,} B | {row.waves}"
        lines.append(f"| `{row.name.removeprefix('openmythos_')}` | {counts} | {flight} |")
    if _plain(arch) in MEMORY:
        bandwidth, units = MEMORY[_plain(arch)]
        need = bandwidth * 1e-6 / units
        lines += [
            "",
            f"{bandwidth / 1e9:,.0f} GB/s and 1 us of latency need {need / 1e3:.0f} kB in flight in each {unit}.",
        ]
    return "\n".join(lines)
