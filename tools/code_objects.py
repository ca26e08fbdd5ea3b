"""Reads code objects (ELF files of AMD or CUDA device code), and writes the manifest that ships beside them.

python tools/code_objects.py FOLDER --vendor cuda --toolkit 13.0     writes FOLDER/manifest.txt
"""

from __future__ import annotations

import argparse
import hashlib
import re
import struct
from pathlib import Path
from typing import NamedTuple

FORMAT = "openmythos code objects 1"
EM_CUDA, EM_AMDGPU = 190, 224
SUFFIXES = (".cubin", ".hsaco", ".ptx")


class Facts(NamedTuple):
    """One kernel of an AMD code object: registers, spilled ones, bytes of LDS, scratch and arguments."""

    vgprs: int
    sgprs: int
    spills: int
    lds: int
    scratch: int
    argument_bytes: int
    wave: int


class Entry(NamedTuple):
    """One code object of a manifest."""

    op: str
    arch: str
    file: str
    bytes: int
    sha256: str
    kernels: tuple[str, ...]


class Manifest(NamedTuple):
    """A manifest as read back."""

    vendor: str
    toolkit: str
    entries: tuple[Entry, ...]


def _sections(data: bytes) -> list[tuple[str, int, int, int, int]]:
    """(name, type, offset, size, link) of every section of a 64-bit little-endian ELF file."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (start,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, start + i * size) for i in range(count)]
    text = headers[names][4]

    def name(at: int) -> str:
        return data[text + at : data.index(b"\0", text + at)].decode()

    return [(name(h[0]), h[1], h[4], h[5], h[6]) for h in headers]


def machine(data: bytes) -> int:
    """The ELF machine: EM_AMDGPU or EM_CUDA."""
    return struct.unpack_from("<H", data, 18)[0]


def functions(data: bytes) -> list[str]:
    """Names of the global functions: the kernels."""
    sections, found = _sections(data), []
    for _, kind, offset, size, link in sections:
        if kind != 2 and (kind != 11 or any(s[1] == 2 for s in sections)):
            continue
        strings = sections[link][2]
        for at in range(offset, offset + size, 24):
            name, info, _other, section, _value, _size = struct.unpack_from("<IBBHQQ", data, at)
            if info == 0x12 and section:
                found.append(data[strings + name : data.index(b"\0", strings + name)].decode())
    return sorted(found)


def _unpack(data: bytes, at: int) -> tuple[object, int]:
    """One MessagePack value, of the types that code objects use, and the index of the next one."""
    first = data[at]
    if first < 0x80 or first >= 0xE0:
        return first if first < 0x80 else first - 256, at + 1
    if 0xA0 <= first < 0xC0:
        end = at + 1 + (first & 31)
        return data[at + 1 : end].decode(), end
    if first in (0xC2, 0xC3):
        return first == 0xC3, at + 1
    if first in (0xCC, 0xCD, 0xCE, 0xCF):
        width = 1 << (first - 0xCC)
        return int.from_bytes(data[at + 1 : at + 1 + width], "big"), at + 1 + width
    if first in (0xD9, 0xDA):
        width = 1 << (first - 0xD9)
        start = at + 1 + width
        end = start + int.from_bytes(data[at + 1 : start], "big")
        return data[start:end].decode(), end
    is_map = first in (0xDE, 0xDF) or first < 0x90
    if first < 0xA0:
        count, at = first & 15, at + 1
    elif first in (0xDC, 0xDE):
        count, at = int.from_bytes(data[at + 1 : at + 3], "big"), at + 3
    else:
        raise ValueError(f"MessagePack type {first:#x} is not expected in a code object")
    values = []
    for _ in range(count * (2 if is_map else 1)):
        value, at = _unpack(data, at)
        values.append(value)
    return (dict(zip(values[::2], values[1::2], strict=True)) if is_map else values), at


def amd_metadata(data: bytes) -> dict:
    """The `amdhsa` note of an AMD code object."""
    for _, kind, offset, size, _ in _sections(data):
        if kind != 7:
            continue
        at = offset
        while at < offset + size:
            name, length, number = struct.unpack_from("<III", data, at)
            start = at + 12 + (name + 3) // 4 * 4
            if number == 32:
                return _unpack(data[start : start + length], 0)[0]
            at = start + (length + 3) // 4 * 4
    raise ValueError("no amdhsa metadata")


def amd_facts(data: bytes) -> dict[str, Facts]:
    """Kernel name -> its facts, for an AMD code object."""
    return {
        kernel[".name"]: Facts(
            kernel[".vgpr_count"],
            kernel[".sgpr_count"],
            kernel.get(".vgpr_spill_count", 0) + kernel.get(".sgpr_spill_count", 0),
            kernel[".group_segment_fixed_size"],
            kernel[".private_segment_fixed_size"],
            kernel[".args"][0][".size"],
            kernel[".wavefront_size"],
        )
        for kernel in amd_metadata(data)["amdhsa.kernels"]
    }


def arch_of(path: Path) -> str:
    """The architecture of a code object, read from its contents, not its name; for CUDA without the "a"."""
    data = path.read_bytes()
    if path.suffix == ".ptx":
        return re.search(r"^\.target sm_(\w+)", data.decode(), re.MULTILINE).expand(r"compute_\1")
    if machine(data) == EM_AMDGPU:
        return amd_metadata(data)["amdhsa.target"].rsplit("-", 1)[-1]
    if machine(data) != EM_CUDA:
        raise ValueError(f"{path}: ELF machine {machine(data)} is neither AMD's nor CUDA's")
    (flags,) = struct.unpack_from("<I", data, 48)
    return f"sm_{flags >> 8 & 0xFF}"


def kernels_of(path: Path) -> list[str]:
    """Names of the kernels in a code object."""
    if path.suffix == ".ptx":
        return sorted(re.findall(r"^\.visible \.entry (\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE))
    return functions(path.read_bytes())


def write_manifest(folder: Path, vendor: str, toolkit: str) -> None:
    """Write `manifest.txt` about every code object (op.arch.suffix) in the folder."""
    lines = [FORMAT, f"vendor {vendor}", f"toolkit {toolkit}"]
    for path in sorted(folder.iterdir()):
        if path.suffix not in SUFFIXES:
            continue
        op, arch = path.stem.split(".", 1)
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        lines.append(f"object {op} {arch} {path.name} {len(data)} {digest}")
        lines += [f"kernel {op} {name}" for name in kernels_of(path)]
    (folder / "manifest.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder."""
    lines = (folder / "manifest.txt").read_text(encoding="utf-8").splitlines()
    if lines[0] != FORMAT:
        raise ValueError(f"{folder}/manifest.txt begins with {lines[0]!r}, expected {FORMAT!r}")
    values, entries = {}, []
    for line in lines[1:]:
        key, *rest = line.split()
        if key == "object":
            op, arch, file, size, digest = rest
            entries.append(Entry(op, arch, file, int(size), digest, ()))
        elif key == "kernel":
            entries[-1] = entries[-1]._replace(kernels=(*entries[-1].kernels, rest[1]))
        else:
            values[key] = rest[0]
    return Manifest(values["vendor"], values["toolkit"], tuple(entries))


def main() -> None:
    """Write a manifest from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vendor", choices=("cuda", "rocm"), required=True)
    parser.add_argument("--toolkit", required=True, help="the compiler's CUDA or ROCm version, 13.0 say")
    arguments = parser.parse_args()
    write_manifest(arguments.folder, arguments.vendor, arguments.toolkit)


if __name__ == "__main__":
    main()
