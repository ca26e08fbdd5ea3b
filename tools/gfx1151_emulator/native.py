"""The compiled part of the emulator, wave.c, and its structures as ctypes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
from enum import IntEnum, IntFlag
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openmythos" / "emulator"
SOURCES = (Path(__file__).with_name("wave.c"), Path(__file__).with_name("instructions.h"))

LANES, VECTORS, SCALARS = 32, 256, 260
# Scalar registers with a meaning of their own; from 256 on they are the emulator's.
VCC, EXEC, PROGRAM_COUNTER, SCRATCH_STRIDE = 106, 126, 256, 259


class Kind(IntEnum):
    """How wave.c runs an instruction: RUN calls the translated function, wave.c implements the others."""

    MISS = 0
    RUN = 1
    END = 2
    BARRIER = 3
    SKIP = 4
    DPP = 5
    BUFFER = 6
    D16 = 7
    WMMA = 8
    PERMLANE16 = 9
    PERMLANEX16 = 10
    BPERMUTE = 11
    PERMUTE = 12
    SWIZZLE = 13
    DENORM = 14
    CALL = 15
    FLAT = 16
    APERTURE = 17


OUT_OF_CODE, BUDGET = 100, 101


class Flag(IntFlag):
    """Modifiers for wave.c: SNAPSHOT reads copies of the registers, LOCK excludes the other threads."""

    SNAPSHOT = 1
    LOCK = 2
    JUMPS = 4
    LOW = 8
    HIGH = 16


class Op(ctypes.Structure):
    """One decoded instruction."""

    _fields_ = (
        ("function", ctypes.c_void_p),
        ("replacement", ctypes.c_uint64),
        ("kind", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("spare", ctypes.c_uint32),
        ("target", ctypes.c_uint32),
        ("cleared", ctypes.c_uint32),
        ("argument", ctypes.c_uint8 * 8),
    )


class Wave(ctypes.Structure):
    """The state of one wave, and the number of instructions and of matrix instructions that it has run."""

    _fields_ = (
        ("buffer", ctypes.c_uint64 * 8),
        ("vector_bytes", ctypes.c_uint64),
        ("steps", ctypes.c_uint64),
        ("matrix", ctypes.c_uint64),
        ("flush", ctypes.c_uint64),
    )


@functools.cache
def library() -> ctypes.CDLL:
    """wave.c, compiled once for this machine and kept in the cache folder."""
    CACHE.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()[:16]
    built = CACHE / f"wave-{digest}.so"
    if not built.exists():
        unfinished = built.with_suffix(f".{os.getpid()}")
        command = ["clang", "-O2", "-march=native", "-shared", "-fPIC", SOURCES[0], "-o", unfinished]
        subprocess.run(command, check=True)
        unfinished.replace(built)
    loaded = ctypes.CDLL(str(built))
    loaded.run.argtypes = [ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_uint64] * 3
    return loaded
