"""Compiles launches ahead of time for a target that this machine does not have, and reports on the code objects."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.cache import get_cache_manager

from openmythos.triton_kernels.launch import Launch, Target

_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
    torch.uint8: "u8",
}


def gpu_target(target: Target) -> GPUTarget:
    """Triton's own name of a target."""
    return GPUTarget("hip", target.arch, 32) if target.amd else GPUTarget("cuda", int(target.arch[2:]), 32)


class Specialised(NamedTuple):
    """A kernel with the types and specialisation that the JIT would choose, and the remaining run-time arguments."""

    source: ASTSource
    arguments: list[Any]


def specialise(launch: Launch, target: Target) -> Specialised:
    """The specialisation that the JIT would compile: None and 1 become constants, multiples of 16 are marked.

    Each element of a tuple is an argument of its own.
    """
    signature: dict[str, Any] = {}
    arguments: list[Any] = []
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list] = {}

    def typed(path: tuple[int, ...], value: Any, plain: bool) -> Any:
        if isinstance(value, tuple):
            return tuple(typed((*path, index), part, plain) for index, part in enumerate(value))
        if value is None or (type(value) is int and value == 1 and plain):
            constants[path] = value
            return "constexpr"
        arguments.append(value)
        if isinstance(value, torch.Tensor):
            aligned = value.is_meta or value.data_ptr() % 16 == 0
            attributes[path] = [["tt.divisibility", 16]] if aligned else []
            if target.amd and value.untyped_storage().nbytes() < 2**31:
                attributes[path].append(["tt.pointer_range", 32])
            return f"*{_TYPES[value.dtype]}"
        if isinstance(value, bool):
            return "i1"
        if isinstance(value, int):
            attributes[path] = [["tt.divisibility", 16]] if value % 16 == 0 and plain else []
            return "i32" if -(2**31) <= value < 2**31 else "i64"
        return "fp32"

    values = iter(launch.args)
    for index, parameter in enumerate(launch.kernel.params):
        if parameter.name in launch.constexprs:
            signature[parameter.name] = "constexpr"
            constants[index,] = launch.constexprs[parameter.name]
        else:
            signature[parameter.name] = typed((index,), next(values), not parameter.do_not_specialize)
    left = len(list(values))
    if left:
        raise TypeError(f"{launch.kernel.__name__} was given {left} arguments too many")
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    return Specialised(source, arguments)


@contextmanager
def _without_line_info() -> Iterator[None]:
    """Compile without source paths and line numbers, so that editing a comment changes no code object's hash."""
    name = "TRITON_DISABLE_LINE_INFO"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def compile_launch(launch: Launch, target: Target) -> CompiledKernel:
    """The code object of one launch for `target`, as the JIT would build it there, without line information."""
    options = {"enable_fp_fusion": True, **launch.options}
    with _without_line_info():
        return triton.compile(specialise(launch, target).source, target=gpu_target(target), options=options)


def label(launch: Launch) -> str:
    """A kernel's constexprs and options, on one line."""
    return " ".join(f"{name}={value}" for name, value in {**launch.constexprs, **launch.options}.items())


class Facts(NamedTuple):
    """The resources and instructions of a code object: a line of the golden table."""

    registers: int
    spills: int
    shared: int
    matrix: dict[str, int]
    widest_load: int
    sha256: str | None


def facts(compiled: CompiledKernel, target: Target) -> Facts:
    """Registers, spills, shared bytes, matrix instructions and the widest global load (bits) of a code object.

    Cached beside the code object in Triton's cache, since assembling for NVIDIA takes longer than everything else.
    """
    kept, name = get_cache_manager(compiled.hash), f"facts-{_version()}.json"
    path = kept.get_file(name)
    if path is not None:
        return Facts(**json.loads(Path(path).read_text()))
    found = _amd_facts(compiled) if target.amd else _nvidia_facts(compiled, target)
    kept.put(json.dumps(found._asdict()), name, binary=False)
    return found


@functools.cache
def _version() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def _count(pattern: str, text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in re.findall(pattern, text):
        found[name] = found.get(name, 0) + 1
    return found


def _amd_facts(compiled: CompiledKernel) -> Facts:
    text = compiled.asm["amdgcn"]

    def number(field: str) -> int:
        return int(re.search(rf"\.{field}:\s+(\d+)", text).group(1))

    widths = [int(bits) for bits in re.findall(r"(?:buffer|global)_load_b(\d+)", text)]
    return Facts(
        number("vgpr_count"),
        number("vgpr_spill_count") + number("sgpr_spill_count"),
        compiled.metadata.shared,
        _count(r"(v_wmma_\w+|v_dot2\w+)", text),
        max(widths, default=0),
        hashlib.sha256(compiled.asm["hsaco"]).hexdigest(),
    )


def _nvidia_facts(compiled: CompiledKernel, target: Target) -> Facts:
    text = compiled.asm["ptx"]
    name = "ptxas-blackwell" if target.arch == "sm100" else "ptxas"
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(text)
        suffix = "a" if target.arch in ("sm90", "sm100") else ""
        command = [ptxas, "-v", f"--gpu-name={target.arch.replace('sm', 'sm_')}{suffix}", source, "-o", os.devnull]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    loads = re.findall(r"ld\.global[\w.:]*?(?:\.v(\d))?\.[bfu](\d+)", text)
    sizes = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^\]]*\], \[[^\]]*\], 0x([0-9a-f]+)", text)
    copies = [8 * int(size, 16) for size in sizes]
    widths = [int(count or 1) * int(bits) for count, bits in loads] + copies
    return Facts(
        int(re.search(r"Used (\d+) registers", log).group(1)),
        sum(map(int, re.findall(r"(\d+) bytes spill", log))),
        compiled.metadata.shared,
        _count(r"(wgmma\.mma_async|mma\.sync|tcgen05\.mma)", text),
        max(widths, default=0),
        None,
    )
