"""The state of the recurrent loop on the fused path.

It is in `nn`, not in `engine`, since the recurrent block also runs without the engine.
"""

from __future__ import annotations

import torch

from openmythos import ops
from openmythos.ops import repeated
from openmythos.ops.core import direct
from openmythos.ops.loop_step import LoopParams
from openmythos.ops.precision import wide


class LoopState:
    """State of N rows (positions) between loops, advanced by the op loop_step.

    h (N, dim) is the hidden state, e (N, dim) the injected input, h_out (N, dim) the ACT-weighted sum of the states,
    and cum_p (N) the cumulative halting probability; the last two are in float32 or wider. If nothing records the
    calls, h, h_out and cum_p are updated in place.
    """

    def __init__(
        self,
        h: torch.Tensor,
        e: torch.Tensor,
        params: LoopParams,
        *,
        threshold: float,
        eps: float,
        loop_dim: int,
    ) -> None:
        self.shape, state = h.shape, wide(h.dtype)
        self.params, self.settings = params, {"threshold": threshold, "eps": eps, "loop_dim": loop_dim}
        self.h, self.e = h.reshape(-1, h.shape[-1]), e.reshape(-1, h.shape[-1])
        self.h_out = torch.zeros(self.h.shape, dtype=state, device=h.device)
        self.cum_p = torch.zeros(self.h.shape[0], dtype=state, device=h.device)
        self.step_in_place = None
        if device := direct(h):
            self.h = self.h.clone()
            self.step_in_place = repeated.loop_step_(params, device, **self.settings)

    def advance(self, block_out: torch.Tensor, t: int) -> torch.Tensor:
        """Loop `t` from the block's output (..., dim); returns the block's next input."""
        block_out = block_out.reshape(self.h.shape)
        if self.step_in_place is not None:
            x = torch.empty_like(self.e)
            self.step_in_place(self.h, self.e, block_out, self.h_out, self.cum_p, t, x)
            return x.view(self.shape)
        state = (self.h, self.e, block_out, self.h_out, self.cum_p)
        self.h, self.h_out, self.cum_p, x = ops.loop_step(*state, self.params, t, **self.settings)
        return x.view(self.shape)

    def finish(self, block_out: torch.Tensor, t: int) -> None:
        """The last loop `t`, which has no next input."""
        params, state = self.params._replace(norm_w=None), (self.h, self.e, block_out.reshape(self.h.shape))
        state = (*state, self.h_out, self.cum_p)
        if self.step_in_place is not None:
            ops.loop_step_(*state, params, t, x_next=None, **self.settings)
        else:
            self.h, self.h_out, self.cum_p, _ = ops.loop_step(*state, params, t, **self.settings)

    def output(self) -> torch.Tensor:
        """The ACT-weighted sum of the states, in the shape and dtype of h."""
        return self.h_out.to(self.h.dtype).view(self.shape)
