"""The model's own causal mask, recognised by type, so that its values are never read."""

from __future__ import annotations

from typing import NamedTuple

import torch


class CausalMask(NamedTuple):
    """Causal over `new` tokens after `past` cached ones, bottom-right aligned."""

    new: int
    device: torch.device
    dtype: torch.dtype
    past: int = 0

    def tensor(self, total: int | None = None) -> torch.Tensor:
        """Additive (1, 1, T, S): 0 where query i may see key j <= S - T + i, -inf elsewhere."""
        total = self.past + self.new if total is None else total
        mask = torch.full((1, 1, self.new, total), float("-inf"), device=self.device, dtype=self.dtype)
        return mask.triu(diagonal=total - self.new + 1)


Mask = CausalMask | torch.Tensor | None


def as_tensor(mask: Mask) -> torch.Tensor | None:
    """The mask in upstream's form, for modules that need a tensor."""
    return mask.tensor() if isinstance(mask, CausalMask) else mask
