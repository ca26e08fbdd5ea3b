"""Reads AMD code objects: the ELF image in memory, its symbols, and the kernels' metadata."""

from __future__ import annotations

import ctypes
import mmap
import struct
from typing import Any

RELATIVE64 = 13
SYMBOL_TABLES, RELA, NOTE, LOADED, METADATA = (2, 11), 4, 7, 1, 32


def unbundled(blob: bytes, arch: str = "gfx1151") -> bytes:
    """The code object itself, taken out of clang's offload bundle if it is in one."""
    if not blob.startswith(b"__CLANG_OFFLOAD_BUNDLE__"):
        return blob
    count, at = struct.unpack_from("<Q", blob, 24)[0], 32
    for _ in range(count):
        offset, size, length = struct.unpack_from("<3Q", blob, at)
        if arch.encode() in blob[at + 24 : at + 24 + length]:
            return blob[offset : offset + size]
        at += 24 + length
    raise ValueError(f"no {arch} code in this bundle")


def _sections(blob: bytes) -> list[tuple[int, ...]]:
    (start,) = struct.unpack_from("<Q", blob, 0x28)
    size, count, _ = struct.unpack_from("<HHH", blob, 0x3A)
    return [struct.unpack_from("<IIQQQQIIQQ", blob, start + i * size) for i in range(count)]


def symbols(blob: bytes) -> dict[str, int]:
    """{name: address in the image}."""
    sections, found = _sections(blob), {}
    for section in sections:
        if section[1] not in SYMBOL_TABLES:
            continue
        for at in range(section[4], section[4] + section[5], 24):
            name, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", blob, at)
            start = sections[section[6]][4] + name
            found[blob[start : blob.index(b"\0", start)].decode()] = value
    return found


def load_image(blob: bytes) -> tuple[mmap.mmap, int]:
    """The segments in memory, relocated, and where they are."""
    (start,) = struct.unpack_from("<Q", blob, 0x20)
    size, count = struct.unpack_from("<HH", blob, 0x36)
    segments = [struct.unpack_from("<IIQQQQQQ", blob, start + i * size) for i in range(count)]
    segments = [segment for segment in segments if segment[0] == LOADED]
    image = mmap.mmap(-1, (max(s[3] + s[6] for s in segments) + 0x1FFF) & ~0xFFF)
    for segment in segments:
        image[segment[3] : segment[3] + segment[5]] = blob[segment[2] : segment[2] + segment[5]]
    base = ctypes.addressof(ctypes.c_char.from_buffer(image))
    for section in _sections(blob):
        if section[1] != RELA:
            continue
        for at in range(section[4], section[4] + section[5], 24):
            where, info, addend = struct.unpack_from("<QQq", blob, at)
            if info & 0xFFFFFFFF != RELATIVE64:
                raise NotImplementedError(f"relocation type {info & 0xFFFFFFFF}")
            struct.pack_into("<Q", image, where, base + addend)
    return image, base


def _unpacked_many(data: bytes, at: int, count: int) -> tuple[list, int]:
    out = []
    for _ in range(count):
        value, at = _unpacked(data, at)
        out.append(value)
    return out, at


def _unpacked_map(data: bytes, at: int, count: int) -> tuple[dict, int]:
    out, at = _unpacked_many(data, at, 2 * count)
    return dict(zip(out[::2], out[1::2], strict=True)), at


def _unpacked(data: bytes, at: int = 0) -> tuple[Any, int]:
    """The MessagePack value at data[at:] and the next index: as much of the format as kernel metadata uses."""
    tag = data[at]
    at += 1
    if tag < 0x80:
        return tag, at
    if tag < 0x90:
        return _unpacked_map(data, at, tag & 15)
    if tag < 0xA0:
        return _unpacked_many(data, at, tag & 15)
    if tag < 0xC0:
        return data[at : at + (tag & 31)].decode(), at + (tag & 31)
    if tag >= 0xE0:
        return tag - 256, at
    if tag in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[tag], at
    if 0xCC <= tag <= 0xD3:
        kind = "BHIQbhiq"[tag - 0xCC]
        return struct.unpack_from(f">{kind}", data, at)[0], at + struct.calcsize(kind)
    strings, arrays, maps = {0xD9: "B", 0xDA: "H", 0xDB: "I"}, {0xDC: "H", 0xDD: "I"}, {0xDE: "H", 0xDF: "I"}
    kind = (strings | arrays | maps)[tag]
    (count,), at = struct.unpack_from(f">{kind}", data, at), at + struct.calcsize(kind)
    if tag in strings:
        return data[at : at + count].decode(), at + count
    return _unpacked_many(data, at, count) if tag in arrays else _unpacked_map(data, at, count)


def kernels(blob: bytes) -> dict[str, dict[str, Any]]:
    """The metadata of each kernel of a code object: {name: {".args": [...], ".vgpr_count": ...}}."""
    for section in _sections(blob):
        if section[1] != NOTE:
            continue
        at, end = section[4], section[4] + section[5]
        while at < end:
            name_size, size, kind = struct.unpack_from("<III", blob, at)
            start = at + 12 + (name_size + 3 & ~3)
            if kind == METADATA:
                return {
                    kernel[".name"]: kernel for kernel in _unpacked(blob[start : start + size])[0]["amdhsa.kernels"]
                }
            at = start + (size + 3 & ~3)
    raise ValueError("no kernel metadata in this code object")
