"""The key/value cache: one buffer of rows, addressed by slot, with a length for each slot and sequence.

A slot belongs to one layer of prelude or coda, or to one loop of the recurrent block. Latent attention stores the
normalised latent and one rotated rope key for all heads (DeepSeek-V2, arXiv 2405.04434), grouped-query attention
stores keys and values. Capacity doubles up to the model's context.

The cache is a package of its own below `nn` and `engine`: attention modules write to it when they are called
without the engine, so it cannot be part of `engine`, which imports `nn`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

FIRST_CAPACITY = 64


class Layout(NamedTuple):
    """What a cached row holds: the names and widths of its two parts, and the number of heads of their views.

    Latent attention: c_kv (dc), viewed as (B, S, dc), and k_rope (dr), viewed as (B, S, heads, dr) without a
    copy. Grouped-query attention: k and v (n_kv * d), viewed as (B, S, n_kv, d).
    """

    names: tuple[str, str]
    widths: tuple[int, int]
    heads: tuple[int, int]
    shared: bool

    def view(self, rows: torch.Tensor, part: int) -> torch.Tensor:
        """Part 0 or 1 of rows (B, S, width) in upstream's shape."""
        start = self.widths[0] * part
        return self.unfold(rows[..., start : start + self.widths[part]], part)

    def unfold(self, piece: torch.Tensor, part: int) -> torch.Tensor:
        """One part (B, S, width of the part) in upstream's shape."""
        heads = self.heads[part]
        if not heads:
            return piece
        if self.shared:
            return piece.unsqueeze(2).expand(-1, -1, heads, -1)
        return piece.unflatten(-1, (heads, -1))


class SlotCache:
    """Rows (slots, B, capacity, width) and `lengths[slot]`, the number of tokens of each sequence.

    `lengths[slot]` is None for an empty slot.
    """

    def __init__(self, max_seq_len: int | None = None) -> None:
        self.max_seq_len = max_seq_len
        self.layout: Layout | None = None
        self.buffer: torch.Tensor | None = None
        self.lengths: list[tuple[int, ...] | None] = []
        self.min_slots = 0

    @property
    def capacity(self) -> int:
        """The number of tokens that fit before the buffer grows."""
        return 0 if self.buffer is None else self.buffer.shape[2]

    def new_slot(self) -> int:
        """Add a slot and return its index."""
        self.lengths.append(None)
        return len(self.lengths) - 1

    def length(self, slot: int) -> int:
        """Tokens in the longest sequence of a slot, 0 when it is empty."""
        return max(self.lengths[slot] or (0,))

    def common_length(self, slots: Sequence[int]) -> int:
        """The number of tokens that every sequence has in every one of `slots`.

        Raises:
            ValueError: when slots or sequences differ.
        """
        found = {length for slot in slots for length in self.lengths[slot] or (0,)}
        if len(found) != 1:
            raise ValueError(
                f"kv_cache: its {len(slots)} layer-keys hold {sorted(found)} tokens, must hold equally many"
            )
        return found.pop()

    def device_lengths(self, slots: Sequence[int], device: torch.device) -> torch.Tensor:
        """The lengths of `slots`, int32 (slots, B), on `device`."""
        return torch.tensor([self.lengths[slot] for slot in slots], dtype=torch.int32, device=device)

    def rows(self, slot: int) -> torch.Tensor:
        """(B, S, width): the rows of a slot up to its longest sequence, a view."""
        return self.buffer[slot, :, : self.length(slot)]

    def owns(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is a view of the buffer."""
        return (
            self.buffer is not None and tensor.untyped_storage().data_ptr() == self.buffer.untyped_storage().data_ptr()
        )

    def truncate(self, tokens: int | Sequence[int]) -> None:
        """Keep only the first `tokens` of each sequence; one number for all sequences, or one per sequence.

        Raises:
            ValueError: when a number is negative.
        """
        limits = (tokens,) if isinstance(tokens, int) else tuple(tokens)
        if min(limits, default=0) < 0:
            raise ValueError(f"tokens={tokens}: must be at least 0")
        for slot, held in enumerate(self.lengths):
            if held is not None:
                each = limits * len(held) if isinstance(tokens, int) else limits
                self.lengths[slot] = tuple(map(min, held, each))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Restore the lengths when the block raises."""
        lengths = list(self.lengths)
        try:
            yield
        except BaseException:
            self.lengths = lengths + [None] * (len(self.lengths) - len(lengths))
            raise

    def reserve(
        self, slots: Sequence[int], layout: Layout, batch: int, tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Make room for `tokens` tokens of each sequence in `slots`, keeping what is cached.

        Raises:
            ValueError: before anything is changed, when the layout or batch differs from what is cached, or
                `tokens` is more than max_seq_len.
        """
        in_use = any(held is not None for held in self.lengths)
        if self.layout is not None and self.layout != layout:
            raise ValueError(
                f"kv_cache: holds {self.layout.names} of widths {self.layout.widths}, not {layout.names} "
                f"of {layout.widths}; use one cache a model"
            )
        old = self.buffer
        if old is not None and in_use and old.shape[1] != batch:
            raise ValueError(f"kv_cache: holds a batch of {old.shape[1]}, input_ids has one of {batch}")
        if self.max_seq_len is not None and tokens > self.max_seq_len:
            raise ValueError(f"kv_cache: {tokens} tokens do not fit into max_seq_len={self.max_seq_len}")
        if old is not None and not in_use and (old.shape[1] != batch or old.dtype != dtype):
            old = None
        count = max(max(slots) + 1, self.min_slots)
        if old is not None and count <= old.shape[0] and tokens <= old.shape[2]:
            return
        capacity = max(tokens, FIRST_CAPACITY)
        if old is not None:
            count, dtype, device = max(count, old.shape[0]), old.dtype, old.device
            capacity = old.shape[2] if tokens <= old.shape[2] else max(tokens, 2 * old.shape[2])
        if self.max_seq_len is not None:
            capacity = min(capacity, self.max_seq_len)
        self.layout = layout
        self.buffer = torch.empty((count, batch, capacity, sum(layout.widths)), dtype=dtype, device=device)
        for slot, held in enumerate(self.lengths):
            if held is not None and old is not None:
                self.buffer[slot, :, : max(held)] = old[slot, :, : max(held)]
