"""Turns instruction bytes into machine code with tinygrad's RDNA3 emulator, which reads AMD's published pseudo-code.

It lives in tinygrad's repository (test/mockgpu/amd/emu.py), not in its wheel: OPENMYTHOS_TINYGRAD names a checkout.
"""

from __future__ import annotations

import collections
import fcntl
import functools
import hashlib
import os
import pickle
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tools.gfx1151_emulator.native import CACHE, LANES, PROGRAM_COUNTER, SCALARS, VECTORS, Flag

CHECKOUT = os.environ.get("OPENMYTHOS_TINYGRAD", "")

T = TypeVar("T")


def missing() -> str | None:
    """The reason why nothing can be emulated here, or None."""
    if not CHECKOUT:
        return "OPENMYTHOS_TINYGRAD does not name a checkout of tinygrad"
    if not (Path(CHECKOUT) / "test/mockgpu/amd/emu.py").exists():
        return f"OPENMYTHOS_TINYGRAD={CHECKOUT!r} holds no test/mockgpu/amd/emu.py"
    return None


class Translated(NamedTuple):
    """One function: it serves every instruction whose bits under `mask` are `base`."""

    base: int
    mask: int
    size: int
    elf: bytes
    arguments: tuple[int, ...]
    flags: int


def _import_emulator() -> Any:
    """tinygrad's emulator; its package is called `test`, as one of Python's own is."""
    reason = missing()
    if reason is not None:
        raise ImportError(reason)
    sys.path.insert(0, CHECKOUT)
    sys.modules.pop("test", None)
    try:
        from test.mockgpu.amd import emu
    finally:
        sys.path.remove(CHECKOUT)
        sys.path.append(CHECKOUT)
    return emu


def _round_to_even(pcode: dict) -> None:
    """Fix AMD's pseudo-code for rounding to even: adding 0.5 is wrong next to 0.5, for -0 and above 2**23."""
    for op, text in pcode.items():
        if "_RNDNE_" in op.name:
            kind, half, one = re.match(r"D0\.(\w+) = floor\(S0\.\w+ \+ (\S+)\).*-= (\S+)", text, re.S).groups()
            source = f"S0.{kind}"
            pcode[op] = (
                f"tmp = trunc({source})\nD0.{kind} = tmp\n"
                f"if (abs({source} - tmp) > {half}) || ((abs({source} - tmp) == {half}) && !isEven(64'F(tmp))) then\n"
                f"D0.{kind} = ({source} > tmp) ? tmp + {one} : tmp - {one}\nendif"
            )


def _root(node: Any, ops: Any) -> Any:
    while node.op in (ops.INDEX, ops.AFTER):
        node = node.src[0]
    return node


def _read_old(ctx: dict, load: Any, index: Any) -> Any:
    """Rewrite rule, by tinygrad's names: a load from a register file reads its copy in `ctx` instead."""
    copy = ctx.get(index.src[0])
    return None if copy is None else load.replace(src=(index.replace(src=(copy, *index.src[1:])), *load.src[1:]))


class Translator:
    """One function serves all instructions that differ only in registers, offsets and literals; kept on disk."""

    def __init__(self) -> None:
        self.emu = _import_emulator()
        from tinygrad.device import Device
        from tinygrad.renderer.amd import decode_inst
        from tinygrad.runtime.autogen.amd.rdna3 import ins

        self.decode, self.isa, self.device = decode_inst, ins, Device["CPU"]
        _round_to_even(self.emu.PCODE_RDNA3)
        sources = Path(self.emu.__file__).read_bytes() + Path(__file__).read_bytes() + os.uname().machine.encode()
        self.path = CACHE / f"functions-{hashlib.sha256(sources).hexdigest()[:16]}.pickle"
        self.known: dict[str, list[Translated]] = collections.defaultdict(list)
        self.loaded: dict[int, Any] = {}
        self.unsaved: list[tuple[str, Translated]] = []
        if self.path.exists():
            self._load()

    def _load(self) -> None:
        with self.path.open("rb") as file:
            while True:
                try:
                    name, entry = pickle.load(file)
                except EOFError:
                    return
                self.known[name].append(Translated(*entry))

    def save(self) -> None:
        """Append what is new to the file on disk."""
        if not self.unsaved:
            return
        with self.path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            for name, entry in self.unsaved:
                pickle.dump((name, tuple(entry)), file)
        self.unsaved = []

    def name(self, code: bytes) -> str:
        """AMD's name of the instruction."""
        return self.emu._op_name(self.decode(code.ljust(16, b"\0")))

    def get(self, code: bytes) -> tuple[Any, Translated, int]:
        """(loaded program, its function, size in bytes) of the instruction at the start of `code`."""
        instruction = self.decode(code.ljust(16, b"\0"))
        name, size = type(instruction).__name__, instruction.size()
        word = int.from_bytes(code[:size], "little")
        entry = next((e for e in self.known[name] if e.size == size and word & e.mask == e.base), None)
        if entry is None:
            entry = self._translate(instruction, code)
            self.known[name].append(entry)
            self.unsaved.append((name, entry))
        if id(entry) not in self.loaded:
            from tinygrad.device import TinyELF

            elf = TinyELF(entry.elf, "op", self.device.renderer.target, ())
            self.loaded[id(entry)] = self.device.runtime(elf)
        return self.loaded[id(entry)], entry, size

    def _translate(self, instruction: Any, code: bytes) -> Translated:
        from tinygrad.codegen import to_program
        from tinygrad.helpers import Context
        from tinygrad.uop.ops import KernelInfo

        emu = self.emu
        handlers = (emu._INST_HANDLERS[c] for c in type(instruction).__mro__ if c in emu._INST_HANDLERS)
        handler = next(handlers, None)
        name = emu._op_name(instruction)
        if handler is None:
            raise NotImplementedError(f"no handler for {type(instruction).__name__} {name}")
        context = emu._Ctx(instruction.size(), LANES)
        sink, flags = self._from_copies(handler(instruction, context), context)
        narrow = "STORE" in name and re.search(r"_B(8|16)$", name) and not name.startswith("DS_")
        if "ATOMIC" in name or narrow:
            flags |= Flag.LOCK
        if re.match(r"S_C?BRANCH", name):
            flags |= Flag.JUMPS
        base, mask, size = context.canonical_mask(code)
        sink = sink.replace(arg=KernelInfo(name="op")).rtag(1)
        with Context(NOOPT=1, CHECK_OOB=0, TUPLE_ORDER=0, EMULATED_DTYPES="", CAPTURE_PROCESS_REPLAY=0, PROFILE=0):
            program = to_program(sink, self.device.renderer)
        return Translated(base, mask, size, program.to_elf().lib, tuple(program.arg.globals), int(flags))

    def _from_copies(self, sink: Any, context: Any) -> tuple[Any, Flag]:
        """An instruction that writes several registers reads all sources from copies, so that they may overlap."""
        from tinygrad.dtype import dtypes
        from tinygrad.uop.ops import Ops, PatternMatcher, UOp, UPat, graph_rewrite

        def counts_program(index: Any) -> bool:
            at = index.src[1].src[1] if index.src[1].op is Ops.WHERE else index.src[1]
            return at.op is Ops.CONST and at.arg in (PROGRAM_COUNTER, PROGRAM_COUNTER + 1)

        def writes_register(index: Any) -> bool:
            root = _root(index, Ops)
            return root is context.vgpr or (root is context.sgpr and not counts_program(index))

        stores = [node.src[0] for node in sink.toposort() if node.op is Ops.STORE]
        if sum(map(writes_register, stores)) <= 1:
            return sink, Flag(0)
        old = {
            context.vgpr: UOp.param(6, dtypes.uint32, (VECTORS * LANES,)),
            context.sgpr: UOp.param(7, dtypes.uint32, (SCALARS,)),
        }
        pattern = UPat(Ops.LOAD, src=(UPat(Ops.INDEX, name="index"),), name="load", allow_any_len=True)
        return graph_rewrite(sink, PatternMatcher([(pattern, _read_old)]), ctx=old), Flag.SNAPSHOT


# tinygrad's compile cache may be used from one thread only.
_thread = ThreadPoolExecutor(1)


def in_translator_thread(function: Callable[..., T], *args: object) -> T:
    """Call `function` in the one thread that may translate."""
    return _thread.submit(function, *args).result()


@functools.cache
def translator() -> Translator:
    """The translator of this process."""
    return in_translator_thread(Translator)
