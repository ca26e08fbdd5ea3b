"""Mends faults of Triton 3.6's interpreter (TRITON_INTERPRET=1), so that it gives the values a GPU would.

- Loop bounds that a kernel computed are arrays of one element, which numpy 2.4 no longer takes for integers.
- The operands of a bfloat16 `dot` are multiplied as the integers that hold their bits.
- float32 is cut to bfloat16, where every GPU rounds to the nearest, ties to even.
"""

from __future__ import annotations

import functools

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def _widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _rounded(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values).view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, nearest).astype(np.uint16)


@functools.cache
def mend() -> None:
    """Replace the faulty parts; once a process."""
    builder = interpreter.InterpreterBuilder
    patch, dot, cast = interpreter._patch_lang_tensor, builder.create_dot, builder.cast_impl

    def patch_with_index(tensor: type, scope: interpreter._LangPatchScope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def dot_of_floats(self, a, b, *rest):
        operands = [
            interpreter.TensorHandle(_widened(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x
            for x in (a, b)
        ]
        return dot(self, *operands, *rest)

    def cast_and_round(self, value, dst_type):
        kinds = value.dtype.scalar, dst_type.scalar
        if kinds == (tl.bfloat16, tl.float32):
            return interpreter.TensorHandle(_widened(value.data), tl.float32)
        if kinds == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle(_rounded(value.data), tl.bfloat16)
        return cast(self, value, dst_type)

    interpreter._patch_lang_tensor = patch_with_index
    builder.create_dot, builder.cast_impl = dot_of_floats, cast_and_round
