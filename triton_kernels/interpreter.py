"""Fixes bugs of Triton's interpreter (3.6.0 with NumPy 2.4), so that it computes the same values as a GPU.

The bugs: float32 to bfloat16 truncates instead of rounding to nearest even, products of bfloat16 matrices multiply the
stored bits as integers, and a loop bound that is not a plain int raises.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def _rounded_to_bfloat16(data: np.ndarray) -> np.ndarray:
    bits = data.astype(np.float32, copy=False).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(data), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _widened(data: np.ndarray) -> np.ndarray:
    return (data.astype(np.uint32) << 16).view(np.float32)


def correct() -> None:
    """Patch the interpreter in this process; a second call changes nothing."""
    if getattr(InterpreterBuilder, "openmythos_corrected", False):
        return
    InterpreterBuilder.openmythos_corrected = True
    cast, dot, patch = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot, interpreter._patch_lang_tensor

    def cast_impl(self: InterpreterBuilder, source: TensorHandle, kind: Any) -> TensorHandle:
        before, after = source.dtype.scalar, kind.scalar
        if before == tl.float32 and after == tl.bfloat16:
            return TensorHandle(_rounded_to_bfloat16(source.data), after)
        if before == tl.bfloat16 and after == tl.float32:
            return TensorHandle(_widened(source.data), after)
        return cast(self, source, kind)

    def create_dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        wide = (
            TensorHandle(_widened(part.data), tl.float32) if part.dtype.scalar == tl.bfloat16 else part
            for part in (a, b)
        )
        return dot(self, *wide, *rest)

    def patch_tensor(tensor: type, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = cast_impl, create_dot
    interpreter._patch_lang_tensor = patch_tensor
