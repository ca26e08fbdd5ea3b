"""The cache rows of one call: the layers' view of the cache, by slot."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from openmythos.cache.core import Layout, SlotCache


class Rows:
    """The cache rows of one call, slot by slot: where its new tokens go, and what its attention reads.

    Only `commit` counts the new tokens, so that a failed call leaves the lengths unchanged. `position` and `seq_lens`
    are None here: new rows are `new[i]`, at the same position in every sequence, and attention reads all of `first[i]`
    and `second[i]`. (`engine.cache.StepRows` has both on the device.)
    """

    position: torch.Tensor | None = None
    seq_lens: torch.Tensor | None = None
    table: torch.Tensor | None = None

    def __init__(self, cache: SlotCache, slots: Sequence[int], count: int) -> None:
        self.cache, self.slots, self.count = cache, slots, count
        self.start = cache.common_length(slots)
        self.layout: Layout | None = None
        self.batch = 0

    def open(self, layout: Layout, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        """Make room in every slot at the first layer; for later layers only check the layout.

        Raises:
            ValueError: as `SlotCache.reserve`.
        """
        if layout == self.layout:
            return
        end = self.start + self.count
        self.cache.reserve(self.slots, layout, batch, end, dtype, device)
        self.layout, self.batch = layout, batch
        border = layout.widths[0]
        self.new = self._views(slice(self.start, end), slice(None))
        self.first = self._views(slice(end), slice(border))
        self.second = self._views(slice(end), slice(border, None))

    def _views(self, tokens: slice, columns: slice) -> Sequence[torch.Tensor]:
        """One view (B, tokens, columns) for each slot."""
        slots, buffer = self.slots, self.cache.buffer
        if list(slots) == list(range(slots[0], slots[0] + len(slots))):
            return buffer[slots[0] : slots[-1] + 1, :, tokens, columns].unbind()
        return [buffer[slot, :, tokens, columns] for slot in slots]

    def append(self, index: int, parts: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new tokens (B, T, width of each part) into slot number `index`; returns all rows of both parts.

        Under autograd the new rows keep their gradients; cached rows are constants.
        """
        border = self.layout.widths[0]
        parts = tuple(
            part.reshape(*part.shape[:2], width) for part, width in zip(parts, self.layout.widths, strict=True)
        )
        new = self.new[index]
        new[..., :border].copy_(parts[0].detach())
        new[..., border:].copy_(parts[1].detach())
        if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
            past = self.cache.buffer[self.slots[index], :, : self.start].detach().clone()
            rows = torch.cat((past, torch.cat([part.to(past.dtype) for part in parts], dim=-1)), dim=1)
            return rows[..., :border], rows[..., border:]
        return self.first[index], self.second[index]

    def commit(self) -> None:
        """Count the new tokens."""
        if self.layout is not None:
            full = (self.start + self.count,) * max(self.batch, 1)
            for slot in self.slots:
                self.cache.lengths[slot] = full
