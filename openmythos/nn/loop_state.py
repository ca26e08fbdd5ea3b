"""The state of the recurrent loop on the fused path: what one loop hands to the next."""

from __future__ import annotations

import torch

from openmythos import ops
from openmythos.ops.core import direct
from openmythos.ops.loop_step import LoopParams
from openmythos.ops.precision import wide


class LoopState:
    """State of N rows (positions) between loops, advanced by the op loop_step.

    h (N, dim) is the hidden state, e (N, dim) the injected input, h_out (N, dim) the ACT-weighted sum of the states
    and cum_p (N) the halting probability used up so far, both in float32 or wider. Where nothing records the calls,
    h, h_out and cum_p are updated in place.
    """

    __slots__ = ("cum_p", "e", "eps", "h", "h_out", "in_place", "loop_dim", "params", "shape", "threshold")

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
        self.params, self.threshold, self.eps, self.loop_dim = params, threshold, eps, loop_dim
        self.h, self.e = h.reshape(-1, h.shape[-1]), e.reshape(-1, h.shape[-1])
        self.h_out = torch.zeros(self.h.shape, dtype=state, device=h.device)
        self.cum_p = torch.zeros(self.h.shape[0], dtype=state, device=h.device)
        self.in_place = bool(direct(h))
        if self.in_place:
            self.h = self.h.clone()

    def advance(self, block_out: torch.Tensor, t: int, last: bool) -> torch.Tensor | None:
        """Loop `t` from the block's output (B, T, dim); returns the block's next input, None after the last loop."""
        params = self.params._replace(norm_w=None) if last else self.params
        block_out = block_out.reshape(self.h.shape)
        options = {"threshold": self.threshold, "loop_dim": self.loop_dim, "eps": self.eps}
        if self.in_place:
            x = None if last else torch.empty_like(self.e)
            ops.loop_step_(self.h, self.e, block_out, self.h_out, self.cum_p, params, t, x_next=x, **options)
        else:
            self.h, self.h_out, self.cum_p, x = ops.loop_step(
                self.h, self.e, block_out, self.h_out, self.cum_p, params, t, **options
            )
        return None if last else x.view(self.shape)

    def output(self) -> torch.Tensor:
        """The ACT-weighted sum of the states, (B, T, dim) in h's dtype."""
        return self.h_out.to(self.h.dtype).view(self.shape)
