"""Runs AMD gfx1151 (RDNA3.5, wave32) code objects on the CPU, one instruction at a time, to check their results.

Most instructions are tinygrad's, generated from AMD's published pseudo-code (translate.py). Done here, in C
(wave.c, instructions.h), because they were missing or wrong there:

- 16-bit loads into one half of a register, which lost the other half;
- DPP: lanes read after earlier lanes were written, lanes without a source, lanes that are switched off, row_share
  and row_xmask, DPP8, DPP on VOP3;
- WMMA with 16-bit results in the high halves, and with unsigned integers;
- rounding to even next to 0.5, for -0 and above 2**23 (a corrected pseudo-code); the inline constant 1/(2 pi);
- scratch memory shared between the waves of a workgroup; denormals, which the kernel descriptor decides about;
- function calls, generic pointers, raw buffer accesses; ds_bpermute's wrapping and switched-off lanes;
- operands that overlap the result in instructions that write several registers.

Not modelled: time, caches, s_waitcnt, memory order. Waves of a workgroup run one after the other from barrier to
barrier, so a missing barrier is seldom seen. exp, log, rcp, rsq, sin and cos are nearly exact, not the hardware's
bits. Refused with an error: wave64, s_getreg and s_setreg, formatted buffer loads, argument preloading, dynamic
stacks.
"""

from __future__ import annotations

from tools.gfx1151_emulator.launch import Ran, explicit_arguments, launch
from tools.gfx1151_emulator.translate import missing

__all__ = ["Ran", "explicit_arguments", "launch", "missing"]
