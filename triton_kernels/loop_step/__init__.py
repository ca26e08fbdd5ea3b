"""loop_step: LoRA delta, LTI injection, ACT halting and the next loop's input norm, forward and backward."""

from __future__ import annotations

from openmythos.triton_kernels.loop_step.backward import loop_step_backward
from openmythos.triton_kernels.loop_step.forward import loop_step, loop_step_

__all__ = ["loop_step", "loop_step_", "loop_step_backward"]
