"""Runs a kernel of a gfx1151 code object on the CPU, instruction by instruction."""

from __future__ import annotations

import collections
import ctypes
import hashlib
import mmap
import os
import struct
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from tools.gfx1151_emulator.codeobject import kernels, load_image, symbols, unbundled
from tools.gfx1151_emulator.native import (
    BUDGET,
    EXEC,
    LANES,
    OUT_OF_CODE,
    PROGRAM_COUNTER,
    SCALARS,
    SCRATCH_STRIDE,
    VECTORS,
    Kind,
    Op,
    Wave,
    library,
)
from tools.gfx1151_emulator.rewrite import rewrite
from tools.gfx1151_emulator.translate import in_translator_thread, translator

LDS_BYTES, WORK_ITEMS = 65536, 1024
# LDS is not cleared on a real device.
LDS_FILL = 0xA5
LDS_REACH = 2**32 + 4096
SCALAR_SPACE, VECTOR_SPACE = 1088, VECTORS * LANES * 4
# The values of operand numbers 240 to 248.
FLOATS = (0.5, -0.5, 1.0, -1.0, 2.0, -2.0, 4.0, -4.0, 0.15915494309189532)


class Ran(NamedTuple):
    """The statistics of a launch: instructions and matrix instructions over all waves, and resources used."""

    instructions: int
    matrix: int
    waves: int
    seconds: float
    lds: int
    scratch: int
    vgprs: int


class _Code:
    """A loaded code object: its image and one Op per dword, decoded when an instruction is first executed."""

    def __init__(self, blob: bytes) -> None:
        self.image, self.base = load_image(blob)
        self.symbols, self.kernels = symbols(blob), kernels(blob)
        self.count = len(self.image) // 4
        self.ops = (Op * self.count)()
        self._kept: list[object] = []

    def decode(self, pc: int) -> None:
        """Prepare the Op of the instruction at `pc`."""
        op = self.ops[(pc - self.base) >> 2]
        if op.kind != Kind.MISS:
            return  # another thread asked for it first
        code = bytes(self.image[pc - self.base : pc - self.base + 16]).ljust(16, b"\0")
        found = rewrite(code, translator().isa)
        size, flags = found.size, int(found.flags)
        if found.kind in (Kind.RUN, Kind.DPP, Kind.BUFFER, Kind.FLAT, Kind.D16):
            try:
                program, function, natural = translator().get(found.code)
            except Exception as error:
                where = f"+{pc - self.base:#x} ({code[:12].hex()})"
                raise NotImplementedError(f"cannot emulate the instruction at {where}: {error!r}") from error
            size, flags = size or natural, flags | function.flags
            op.function = program.addr
            for i in range(8):
                op.argument[i] = function.arguments[i] if i < len(function.arguments) else 2
            self._kept.append(program)
            if found.kind != Kind.RUN:
                text = ctypes.create_string_buffer(found.code, 32)
                self._kept.append(text)
                op.replacement = ctypes.addressof(text)
        op.size, op.flags, op.spare, op.target, op.cleared = size, flags, found.spare, found.target, found.cleared
        op.kind = found.kind


class _Descriptor(NamedTuple):
    """The kernel descriptor: the hardware's settings for a kernel before its first instruction."""

    group: int
    private: int
    entry: int
    rsrc1: int
    rsrc2: int
    properties: int

    @classmethod
    def read(cls, code: _Code, kernel: str) -> _Descriptor:
        at = code.symbols[f"{kernel}.kd"]
        group, private, _, _ = struct.unpack_from("<IIII", code.image, at)
        (entry,) = struct.unpack_from("<q", code.image, at + 16)
        _, rsrc1, rsrc2, properties, preload = struct.unpack_from("<IIIHH", code.image, at + 44)
        if not properties & 1 << 10:
            raise NotImplementedError("wave64 kernels")
        if preload:
            raise NotImplementedError("kernel argument preloading")
        if properties & 1 << 11:
            raise NotImplementedError("dynamic stack")
        return cls(group, private, code.base + at + entry, rsrc1, rsrc2, properties)


_codes: collections.OrderedDict[bytes, _Code] = collections.OrderedDict()


def _loaded(blob: bytes) -> _Code:
    """The code object in memory; the last few are kept."""
    key = hashlib.sha256(blob).digest()
    if key not in _codes:
        _codes[key] = _Code(blob)
    while len(_codes) > 32:
        _codes.popitem(last=False)
    return _codes[key]


def _argument(value: object, size: int, name: str) -> bytes:
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise TypeError(f"argument {name}: tensors must be on the CPU")
        value = value.data_ptr()
    if isinstance(value, bytes):
        if len(value) != size:
            raise TypeError(f"argument {name} has {size} bytes")
        return value
    if isinstance(value, float):
        return struct.pack({2: "<e", 4: "<f", 8: "<d"}[size], value)
    return (int(value or 0) & (1 << 8 * size) - 1).to_bytes(size, "little")


def _arguments(meta: dict[str, Any], args: Sequence[object], grid: tuple, block: tuple, dynamic_lds: int) -> bytes:
    """The argument block: values in order of the signature, at the offsets and sizes given by the metadata."""
    blob = bytearray(max(meta[".kernarg_segment_size"], 16))
    dimensions = 1 + (grid[1] * block[1] > 1) + (grid[2] * block[2] > 1)
    hidden = {"hidden_grid_dims": ("<H", dimensions), "hidden_dynamic_lds_size": ("<I", dynamic_lds)}
    for i, axis in enumerate("xyz"):
        hidden[f"hidden_block_count_{axis}"] = ("<I", grid[i])
        hidden[f"hidden_group_size_{axis}"] = ("<H", block[i])
    wanted = [entry for entry in meta.get(".args", []) if not entry[".value_kind"].startswith("hidden_")]
    if len(wanted) != len(args):
        raise TypeError(f"{meta['.name']} takes {len(wanted)} arguments, was given {len(args)}")
    for entry, value in zip(wanted, args, strict=True):
        packed = _argument(value, entry[".size"], entry.get(".name", "?"))
        blob[entry[".offset"] : entry[".offset"] + entry[".size"]] = packed
    for entry in meta.get(".args", []):
        if entry[".value_kind"] in hidden:
            kind, value = hidden[entry[".value_kind"]]
            struct.pack_into(kind, blob, entry[".offset"], value)
    return bytes(blob)


def explicit_arguments(blob: bytes, kernel: str) -> int:
    """The number of arguments of a kernel, without the hidden ones."""
    entries = kernels(unbundled(blob))[kernel].get(".args", [])
    return sum(not entry[".value_kind"].startswith("hidden_") for entry in entries)


class _Launch:
    """Everything that the workgroups of one launch share."""

    def __init__(
        self, code: _Code, kernel: str, grid: tuple, block: tuple, args: Sequence[object], dynamic: int
    ) -> None:
        self.code, self.grid, self.block = code, grid, block
        self.kernel = _Descriptor.read(code, kernel)
        self.work_items = block[0] * block[1] * block[2]
        self.lds = self.kernel.group + dynamic
        if self.lds > LDS_BYTES:
            raise ValueError(f"{self.lds} bytes of LDS; gfx1151 has {LDS_BYTES}")
        if self.work_items > WORK_ITEMS:
            raise ValueError(f"{self.work_items} work-items in a workgroup; gfx1151 allows {WORK_ITEMS}")
        self.waves = -(-self.work_items // LANES)
        self.vgprs = min(VECTORS, ((self.kernel.rsrc1 & 63) + 1) * 8)
        blob = _arguments(code.kernels[kernel], args, grid, block, dynamic)
        self._arguments = ctypes.create_string_buffer(blob + b"\0" * 64)
        self._packet = ctypes.create_string_buffer(64)
        sizes = (g * b for g, b in zip(grid, block, strict=True))
        private = self.kernel.private
        struct.pack_into("<HHHHHHIIIII", self._packet, 0, 0, 3, *block, 0, *sizes, private, self.lds)
        self.scalars = self._first_scalars()
        self.ids = [self._work_item(i) for i in range(self.work_items)]
        self.wave_space = 2 * (VECTOR_SPACE + SCALAR_SPACE) + (private * LANES + 63 & ~63)

    @property
    def user_scalars(self) -> int:
        return (self.kernel.rsrc2 >> 1) & 31

    def _work_item(self, i: int) -> int:
        x, y = self.block[0], self.block[1]
        return (i // (x * y)) << 20 | (i // x % y) << 10 | i % x

    def _first_scalars(self) -> ctypes.Array:
        """User registers, then the constants of operand numbers 128 to 255."""
        properties = self.kernel.properties
        user = [0] * 4 if properties & 1 else []
        addresses = {1: ctypes.addressof(self._packet), 3: ctypes.addressof(self._arguments)}
        for bit in range(1, 6):
            if properties & 1 << bit:
                value = addresses.get(bit, 0)
                user += [value & 0xFFFFFFFF, value >> 32]
        if properties & 1 << 6:
            user.append(self.kernel.private)
        user += [0] * (self.user_scalars - len(user))
        scalars = (ctypes.c_uint32 * SCALARS)(*user)
        for i in range(65):
            scalars[128 + i] = i
        for i in range(16):
            scalars[193 + i] = -(i + 1) & 0xFFFFFFFF
        for i, value in enumerate(FLOATS):
            (scalars[240 + i],) = struct.unpack("<I", struct.pack("<f", value))
        scalars[SCRATCH_STRIDE] = self.kernel.private
        struct.pack_into("<Q", scalars, PROGRAM_COUNTER * 4, self.kernel.entry)
        return scalars

    def memory(self) -> mmap.mmap:
        """Room for one workgroup: LDS, then registers and scratch of each wave, then addresses without memory.

        A translated LDS load reads before it checks whether the lane is on, and the address register of a lane that is
        off may hold any 32-bit value.
        """
        reserved = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        return mmap.mmap(-1, self.used + LDS_REACH, flags=reserved)

    @property
    def used(self) -> int:
        """Bytes of `memory` in use."""
        return LDS_BYTES + self.waves * self.wave_space

    def wave(self, index: int, group: tuple[int, int, int], lds: int) -> Wave:
        """Wave `index` of a workgroup, before its first instruction, in memory that holds zeros."""
        vectors = lds + LDS_BYTES + index * self.wave_space
        old_vectors = vectors + VECTOR_SPACE
        scalars = old_vectors + VECTOR_SPACE
        ctypes.memmove(scalars, self.scalars, SCALARS * 4)
        registers = (ctypes.c_uint32 * SCALARS).from_address(scalars)
        at = self.user_scalars
        for axis in range(3):
            if self.kernel.rsrc2 & 1 << (7 + axis):
                registers[at] = group[axis]
                at += 1
        lanes = self.ids[index * LANES : (index + 1) * LANES]
        (ctypes.c_uint32 * LANES).from_address(vectors)[: len(lanes)] = lanes
        registers[EXEC] = (1 << len(lanes)) - 1
        wave = Wave(vector_bytes=self.vgprs * LANES * 4, flush=(self.kernel.rsrc1 >> 16) & 3 == 0)
        old_scalars, scratch = scalars + SCALAR_SPACE, scalars + 2 * SCALAR_SPACE
        wave.buffer[:] = [scalars, vectors, 0, lds, scratch, vectors, old_vectors, old_scalars]
        return wave

    def group(self, index: int) -> tuple[int, int, int]:
        return index % self.grid[0], index // self.grid[0] % self.grid[1], index // (self.grid[0] * self.grid[1])


def _run_wave(code: _Code, wave: Wave, group: tuple[int, int, int], budget: int) -> bool:
    """Run a wave to its next barrier or its end; returns whether it continues afterwards."""
    while True:
        result = library().run(ctypes.byref(wave), code.ops, code.base, code.count, budget - wave.steps)
        if result != Kind.MISS:
            break
        (pc,) = struct.unpack("<Q", ctypes.string_at(wave.buffer[0] + PROGRAM_COUNTER * 4, 8))
        in_translator_thread(code.decode, pc)
    if result == BUDGET:
        raise RuntimeError(f"a wave of workgroup {group} ran {budget} instructions without ending")
    if result == OUT_OF_CODE:
        raise RuntimeError(f"a wave of workgroup {group} left the code object")
    return result != Kind.END


def launch(
    code_object: bytes,
    kernel: str,
    grid: Sequence[int],
    block: Sequence[int],
    args: Sequence[object],
    *,
    dynamic_lds: int = 0,
    threads: int | None = None,
    budget: int = 10**9,
) -> Ran:
    """Run `kernel` of a code object over grid x block work-items.

    args: the explicit arguments in order: a CPU tensor (its address), an int, a float, None (a null pointer), or
    bytes for a struct. dynamic_lds: bytes of dynamic LDS. threads: workgroups in flight at a time; budget: the maximum
    number of instructions per wave. Tensors are read and written at their real addresses, so that a stray access can
    crash the process.
    """
    start = time.perf_counter()
    grid, block = ((*tuple(sizes), 1, 1)[:3] for sizes in (grid, block))
    code = _loaded(unbundled(code_object))
    shared = _Launch(code, kernel, grid, block, args, dynamic_lds)
    local = threading.local()
    library()  # before the threads, which would all build it
    translator()

    def workgroup(index: int) -> tuple[int, int]:
        if not hasattr(local, "memory"):
            local.memory = shared.memory()
        lds = ctypes.addressof(ctypes.c_char.from_buffer(local.memory))
        ctypes.memset(lds, 0, shared.used)
        ctypes.memset(lds, LDS_FILL, shared.lds)
        group = shared.group(index)
        waves = [shared.wave(i, group, lds) for i in range(shared.waves)]
        live = list(waves)
        while live:
            live = [wave for wave in live if _run_wave(code, wave, group, budget)]
        return sum(wave.steps for wave in waves), sum(wave.matrix for wave in waves)

    total = grid[0] * grid[1] * grid[2]
    threads = min(total, threads or os.cpu_count() or 1)
    try:
        with ThreadPoolExecutor(max(threads, 1)) as pool:
            counts = list(pool.map(workgroup, range(total)))
    finally:
        in_translator_thread(translator().save)
    steps, matrix = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    seconds = time.perf_counter() - start
    return Ran(steps, matrix, total * shared.waves, seconds, shared.lds, shared.kernel.private, shared.vgprs)
