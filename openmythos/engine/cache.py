"""The cache as a decode step sees it: fixed addresses, and lengths on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from openmythos.cache import KVCache, Layout, Rows


class StepRows(Rows):
    """The slots of `keys`, at a fixed capacity of at least `tokens`.

    A step writes the row at `position` (B) of each slot and reads its first `seq_lens` = position + 1 (B) rows: shapes
    and addresses are the same at every step, and the host need not know the position. `table` holds the rotations of
    all positions, (P, dr/2, 2).

    Raises:
        ValueError: when the keys hold no tokens or are of unequal length, another implementation wrote some of their
            entries, or `tokens` is more than max_seq_len.
    """

    def __init__(self, cache: KVCache, keys: Sequence[str], tokens: int, table: torch.Tensor) -> None:
        held = sorted({cache.length(key) for key in keys})
        if len(held) != 1 or held == [0] or cache.has_foreign(keys):
            raise ValueError(f"kv_cache: its {len(keys)} layer-keys hold {held} tokens; fill it by one model")
        if cache.origin != 0:
            raise ValueError(f"kv_cache: starts at position {cache.origin}, must start at 0")
        super().__init__(cache.core, cache.slots(keys), count=1)
        self.table, old = table, cache.core.buffer
        cache.core.reserve(self.slots, cache.layout, old.shape[1], tokens, old.dtype, old.device)
        self.layout, self.batch = cache.layout, old.shape[1]
        border = self.layout.widths[0]
        self.buffer = cache.core.buffer
        self.new = self._views(slice(None), slice(None))
        self.first = self._views(slice(None), slice(border))
        self.second = self._views(slice(None), slice(border, None))
        self.seq_lens = cache.core.device_lengths(self.slots[:1], self.buffer.device)[0] + 1
        self.position = self.seq_lens.long() - 1

    def open(self, layout: Layout, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        """Nothing to do: there is room for every step."""

    def append(self, index: int, parts: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Raises: the position of new rows is on the device, and only the op rope_append_ reads it."""
        raise RuntimeError("a decode step writes the cache by rope_append_: run it without gradients and autocast")

    def commit(self) -> None:
        """Count one more token in every slot, on the host."""
        super().commit()
        self.start += 1

    def current(self) -> bool:
        """Whether the cache is as the last step left it: the same buffer and the same number of tokens."""
        unchanged = (self.start,) * max(self.batch, 1)
        return self.cache.buffer is self.buffer and all(self.cache.lengths[slot] == unchanged for slot in self.slots)

    def advance(self) -> None:
        """Move to the next position, on the device only."""
        self.position += 1
        self.seq_lens += 1
