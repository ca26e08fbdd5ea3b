"""CUDA kernels compiled by a C++ compiler and run on the CPU, to check their values without a GPU.

The source is the one that nvcc compiles, with each PTX instruction replaced by a call of its definition in `shim.h`.
This tests neither ptxas nor a GPU's memory order.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

from tools import building, device_code

HERE = Path(__file__).parent
# By the start of an instruction's text; the names are those of the surrounding C++.
INSTRUCTIONS = {
    "cvt.f32.f16": "y = host::to_float(x.bits, false)",
    "cvt.rn.bf16.f32": "y = host::to_bf16(x)",
    "cvt.rn.bf16x2.f32": "y = host::to_bf16(low) | uint32_t(host::to_bf16(high)) << 16",
    "cvt.rn.f16x2.f32": "y = host::to_half(low) | uint32_t(host::to_half(high)) << 16",
    "cvt.rn.f16.f32": "y = host::to_half(x)",
    "ex2.approx": "y = std::exp2(x)",
    "lg2.approx": "y = std::log2(x)",
    "ld.global.L1::no_allocate.v4": "std::memcpy(&x, p, 16)",
    "{.reg .u64 t; cvta.to.shared": "y = host::shared_address(p)",
    "cp.async.cg.shared.global": "host::copy_async(at, from, bytes)",
    "cp.async.commit_group": "host::close_group()",
    "cp.async.wait_group": "host::wait_for_groups(PENDING)",
    "fence.proxy.async": "(void)0",  # what follows is a barrier
    "ldmatrix.sync.aligned.m8n8.x4": "host::ldmatrix(x.w, at)",
    "{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma": "host::wgmma(sums, a, b, type[0] == 'b')",
    "wgmma.wait_group": "host::finish_products()",
    "wgmma.": "(void)0",  # fences and groups: there is only waiting for all
    "movmatrix.sync.aligned.m8n8.trans": "y = host::movmatrix(x)",
}
# The argument struct of each file's kernels.
PARAMS = {
    "mla_absorbed": "MlaArgs",
    "mla_decompressed": "MlaDecompressedArgs",
    "moe_grouped": "MoeGroupedArgs",
    "moe_route": "MoeRouteArgs",
}
MAX_SHARED = 227 * 1024
HOPPER = "-D__CUDA_ARCH_FEAT_SM90_ALL"
PAIR = re.compile(r': "=r"\((.+)\), "=r"\((.+)\)\s*: "l"\((.+)\)\)\Z')
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[()]')


def _definition(statement: str) -> str:
    """The C++ expression for one asm statement."""
    text = re.search(r'"((?:[^"\\]|\\.)*)"', statement)[1]
    if not text:
        return ""
    if text.startswith("mma.sync.aligned.m16n8k16"):
        return "host::mma(c, a0, a1, a2, a3, b0, b1, type[0] == 'b')"
    if text.startswith("ld.global.L1::no_allocate.v2"):
        low, high, source = PAIR.search(statement).groups()
        return f"std::memcpy(&{low}, {source}, 4), std::memcpy(&{high}, {source} + 2, 4)"
    return next(call for start, call in INSTRUCTIONS.items() if text.startswith(start))


def translated(text: str) -> str:
    """The source with every asm statement replaced."""
    parts, at = [], 0
    for match in re.finditer(r"\basm(?: volatile)?(?=\()", text):
        depth = 0
        for token in TOKEN.finditer(text, match.end()):
            depth += {"(": 1, ")": -1}.get(token[0], 0)
            if depth == 0:
                break
        parts += [text[at : match.start()], _definition(text[match.start() : token.end()])]
        at = token.end()
    return "".join(parts) + text[at:]


def sources(*ops: str) -> list[Path]:
    """The headers of device code, and these ops."""
    return [*device_code.headers(), *(device_code.sources()[op] for op in ops)]


def translate(folder: Path, *ops: str) -> None:
    """Write the translated sources into a folder, laid out as csrc is."""
    for source in sources(*ops):
        to = folder / source.relative_to(device_code.CSRC)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(translated(source.read_text(encoding="utf-8")), encoding="utf-8")


def library(op: str, hopper: bool = False) -> Path:
    """The kernels of op.cu and `host_launch` as a library; `hopper`: as for sm_90a, which has wgmma."""
    shims = [HERE / name for name in ("shim.h", "launch.cpp", "__init__.py")]
    flags = ("-std=c++20", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-mfma", "-Wno-unknown-pragmas")
    source = device_code.sources()[op].relative_to(device_code.CSRC)
    flags += (f'-DSOURCE="{source}"', f"-DARGS={PARAMS[op]}", *((HOPPER,) if hopper else ()))

    def make(path: Path) -> None:
        translate(path.parent / "csrc", op)
        building.run([building.GXX, *flags, "-I", str(path.parent / "csrc"), str(shims[1]), "-o", str(path)])

    return building.cached(f"lib{op}.so", [*sources(op), *shims], " ".join((building.GXX, *flags)), make)


class HostKernels:
    """The kernels of one .cu file, run on the CPU; `launched` lists them in order."""

    def __init__(self, op: str, hopper: bool = False) -> None:
        self.launched: list[str] = []
        self._library = ctypes.CDLL(str(library(op, hopper)))
        self._library.host_launch.argtypes = [ctypes.c_void_p, *[ctypes.c_uint] * 4, ctypes.c_void_p]

    def launch(self, kernel: str, grid: tuple[int, int, int], threads: int, shared: int, params: int) -> None:
        """Run one launch; `params` is the address of the kernel's argument struct."""
        assert shared <= MAX_SHARED
        function = ctypes.cast(getattr(self._library, kernel), ctypes.c_void_p)
        self._library.host_launch(function, *grid, threads, params)
        self.launched.append(kernel)
