"""Replaces instructions that tinygrad's emulator lacks or gets wrong by equivalent ones that it implements correctly.

A rewritten instruction works on a spare register; wave.c moves lanes, addresses or halves into place around it.
"""

from __future__ import annotations

import re
import struct
from typing import Any, NamedTuple

from tools.gfx1151_emulator.native import EXEC, VCC, VECTORS, Flag, Kind


class Instruction(NamedTuple):
    """What an Op needs: the bytes to run, the size of the original, and the registers around it.

    `spare` is the first of three registers that wave.c may use, `target` the register that a half is merged into or
    that lanes outside a buffer clear, `cleared` how many of those and, from bit 16, the bytes of one access.
    """

    kind: Kind
    code: bytes
    size: int
    flags: Flag = Flag(0)
    target: int = 0
    spare: int = 0
    cleared: int = 0


def bits(word: int, high: int, low: int) -> int:
    """Bits high..low of a word."""
    return (word >> low) & ((1 << (high - low + 1)) - 1)


def _spare(*used: int) -> int:
    """The first of three registers away from the used ones, each taken with its three successors."""
    return next(r for r in range(VECTORS - 3, 0, -1) if not any(u <= r + 2 and r <= u + 3 for u in used))


def without_dpp(code: bytes) -> Instruction | None:
    """The plain instruction for one with a DPP operand, with src0 in the spare register, where wave.c puts the lanes.

    Modifiers that only the DPP encoding has are kept by moving to the VOP3 encoding.
    """
    words = struct.unpack_from("<4I", code)
    vop3 = words[0] >> 26 == 0x35 or words[0] >> 24 == 0xCC
    if not vop3 and words[0] >> 31:
        return None
    src0 = words[1] & 511 if vop3 else words[0] & 511
    if src0 not in (250, 233, 234):
        return None
    if vop3:
        sources = (bits(words[1], 17, 9), bits(words[1], 26, 18))
        spare = _spare(words[0] & 255, *(x - 256 for x in sources if x >= 256))
        return Instruction(Kind.DPP, struct.pack("<II", words[0], (words[1] & ~511) | 256 | spare), 12, spare=spare)
    encoding, vsrc1, vdst = words[0] >> 25, bits(words[0], 16, 9), bits(words[0], 24, 17)
    spare = _spare(vsrc1, vsrc1 & 127, vdst, vdst & 127)
    modifiers = bits(words[1], 23, 20) if src0 == 250 else 0
    if not modifiers:
        return Instruction(Kind.DPP, struct.pack("<I", (words[0] & ~511) | 256 | spare), 8, spare=spare)
    if encoding == 0x3F:
        opcode, target, src1, src2 = 0x180 + vsrc1, vdst, 0, 0
    elif encoding == 0x3E:
        opcode, target, src1, src2 = vdst, EXEC if vdst & 0x80 else VCC, 256 | vsrc1, 0
    else:
        opcode, target, src1, src2 = 0x100 + encoding, vdst, 256 | vsrc1, VCC if encoding == 1 else 0
    # DPP: src0 negated, src0 absolute, src1 negated, src1 absolute; VOP3 has one field for each modifier
    negated = (modifiers & 1) | ((modifiers >> 2) & 1) << 1
    absolute = ((modifiers >> 1) & 1) | ((modifiers >> 3) & 1) << 1
    low = 0x35 << 26 | opcode << 16 | absolute << 8 | target
    high = negated << 29 | src2 << 18 | src1 << 9 | 256 | spare
    return Instruction(Kind.DPP, struct.pack("<II", low, high), 8, spare=spare)


def _plain_load(name: str) -> str:
    return re.sub(r"_D16(_HI)?", "", name).replace("_B16", "_U16")


def _half(name: str) -> Flag:
    return Flag.HIGH if "_HI" in name else Flag.LOW


def without_d16(code: bytes, isa: Any) -> Instruction | None:
    """A plain load into the third spare register for a 16-bit load that leaves half of its destination alone."""
    words = struct.unpack_from("<2I", code)
    lds = words[0] >> 26 == 0x36
    if not lds and words[0] >> 26 != 0x37:
        return None
    ops, number = (isa.DSOp, bits(words[0], 25, 18)) if lds else (isa.GLOBALOp, bits(words[0], 24, 18))
    try:
        name = ops(number).name
    except ValueError:
        return None
    if "_D16" not in name or "LOAD" not in name:
        return None
    target, spare = words[1] >> 24, _spare(words[1] & 255, words[1] >> 24)
    low = words[0] & ~((255 if lds else 127) << 18) | ops[_plain_load(name)].value << 18
    plain = struct.pack("<II", low, (words[1] & 0xFFFFFF) | (spare + 2) << 24)
    return Instruction(Kind.D16, plain, 8, _half(name), target, spare)


def without_flat(code: bytes, isa: Any) -> Instruction | None:
    """A global access through the spare registers, which wave.c fills, for one by generic pointers."""
    words = struct.unpack_from("<2I", code)
    if words[0] >> 26 != 0x37 or bits(words[0], 17, 16):
        return None
    plain = without_d16(code, isa)
    if plain is None:
        spare = _spare(words[1] & 255, bits(words[1], 15, 8), words[1] >> 24)
        plain = Instruction(Kind.FLAT, code[:8], 8, spare=spare)
    low, high = struct.unpack("<2I", plain.code)
    moved = struct.pack("<2I", low | 2 << 16, high & 0xFF80FF00 | 124 << 16 | plain.spare)
    return plain._replace(kind=Kind.FLAT, code=moved)


def without_buffer(code: bytes, isa: Any) -> Instruction:
    """A global access through the spare registers for a MUBUF instruction; cache operations are skipped."""
    words = struct.unpack_from("<2I", code)
    number, returns_old, data = bits(words[0], 25, 18), bits(words[0], 14, 14), bits(words[1], 15, 8)
    name = isa.MUBUFOp(number).name
    if "_INV" in name or "_WB" in name:
        return Instruction(Kind.SKIP, code, 8)
    half = "_D16" in name and "LOAD" in name
    plain = (_plain_load(name) if half else name).replace("BUFFER_", "GLOBAL_")
    if "_FORMAT" in name or "LDS" in name or plain not in isa.GLOBALOp.__members__:
        raise NotImplementedError(name)
    if bits(words[1], 21, 21):
        raise NotImplementedError(f"{name} with tfe")
    size, spare = int(re.search(r"_[BUIF](\d+)", name).group(1)) // 8, _spare(words[1] & 255, data)
    low = 0x37 << 26 | isa.GLOBALOp[plain].value << 18 | 2 << 16 | returns_old << 14
    high = (spare + 2 if half else data) << 24 | 124 << 16 | data << 8 | spare
    loads = "LOAD" in name or ("ATOMIC" in name and returns_old)
    registers = max(1, size // 4) if loads and not half else 0
    flags = _half(name) if half else Flag(0)
    return Instruction(Kind.BUFFER, struct.pack("<II", low, high), 8, flags, data, spare, registers | size << 16)


def _permlane_size(code: bytes) -> int:
    selects = int.from_bytes(code[4:8], "little")
    return 12 if 255 in (bits(selects, 17, 9), bits(selects, 26, 18)) else 8


def _scalar(word: int, code: bytes) -> Instruction | None:
    """Program control that wave.c does itself."""
    if word >> 23 == 0x17F:
        number = bits(word, 22, 16)
        if number == 16:
            raise RuntimeError("s_trap reached: an assertion in the kernel failed")
        known = {48: Kind.END, 61: Kind.BARRIER, 18: Kind.DENORM}
        return Instruction(known.get(number, Kind.RUN if 32 <= number <= 38 else Kind.SKIP), code, 4)
    if word >> 28 == 0xB and 17 <= bits(word, 27, 23) <= 19:
        raise NotImplementedError("s_getreg and s_setreg")
    if (word >> 23 == 0x17D and 71 <= bits(word, 15, 8) <= 73) or word >> 23 == 0x174:
        return Instruction(Kind.CALL, code, 4)
    if word >> 23 == 0x17D and 235 <= word & 255 <= 238:
        if bits(word, 15, 8) != 1 or word & 255 not in (235, 237):
            raise NotImplementedError("this use of a memory aperture")
        return Instruction(Kind.APERTURE, code, 4)
    return None


def rewrite(code: bytes, isa: Any) -> Instruction:
    """How to run the instruction at the start of `code` (16 bytes); `isa` is tinygrad's table of opcodes.

    A size of 0 means that of the decoded instruction.
    """
    word = int.from_bytes(code[:4], "little")
    plain = without_dpp(code)
    if plain is None and word >> 26 == 0x38:
        plain = without_buffer(code, isa)
    plain = plain or without_flat(code, isa) or without_d16(code, isa)
    if plain is not None:
        return plain
    if word >> 24 == 0xCC and 64 <= bits(word, 22, 16) <= 69:
        return Instruction(Kind.WMMA, code, 8)
    if word >> 16 in (0xD65B, 0xD65C):
        return Instruction(Kind.PERMLANE16 if word >> 16 == 0xD65B else Kind.PERMLANEX16, code, _permlane_size(code))
    permutes = {179: Kind.BPERMUTE, 178: Kind.PERMUTE, 53: Kind.SWIZZLE}
    if word >> 26 == 0x36 and bits(word, 25, 18) in permutes:
        return Instruction(permutes[bits(word, 25, 18)], code, 8)
    return _scalar(word, code) or Instruction(Kind.RUN, code, 0)
