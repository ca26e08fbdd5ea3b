"""The key/value cache: one buffer for all layers and loops, seen as upstream's dict of layer-keys.

A model called with `kv_cache={}` keeps its tensors in a `KVCache` behind the entries that it puts into
that dict; a `KVCache` itself may be passed just as well. Latent attention stores the normalised latent
and one rotated rope key for all heads (DeepSeek-V2, arXiv 2405.04434), grouped-query attention keys and
values. Capacity doubles up to the model's context, so nothing is allocated for tokens nobody has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

FIRST_CAPACITY = 64
# A part without elements that says of a latent that its norm was taken; it follows every copy of an entry.
NORMALISED = "normalised"


class Layout(NamedTuple):
    """What a cached row holds: part names, their widths, and the heads each is seen with.

    Latent attention: c_kv (dc), seen as (B, S, dc), and k_rope (dr), seen as (B, S, heads, dr) without a
    copy. Grouped-query attention: k and v (n_kv * d), seen as (B, S, n_kv, d).
    """

    names: tuple[str, str]
    widths: tuple[int, int]
    heads: tuple[int, int]
    shared: bool

    @property
    def parts(self) -> tuple[str, ...]:
        """Names in an entry: the two parts, and for a shared latent the empty mark of its norm."""
        return (*self.names, NORMALISED) if self.shared else self.names

    def view(self, rows: torch.Tensor, part: int) -> torch.Tensor:
        """Part 0 or 1 of rows (B, S, width) in upstream's shape."""
        start = self.widths[0] * part
        piece = rows[..., start : start + self.widths[part]]
        heads = self.heads[part]
        if not heads:
            return piece
        if self.shared:
            return piece.unsqueeze(2).expand(-1, -1, heads, -1)
        return piece.unflatten(-1, (heads, -1))


class CacheEntry(Mapping):
    """One layer-key of a cache: upstream's two tensors, as views made on access.

    Latent attention adds "normalised" (B, S, 0), so that a copy of the entry is known for what it is.
    """

    def __init__(self, cache: KVCache, key: str) -> None:
        self.cache = cache
        self.key = key

    def __getitem__(self, name: str) -> torch.Tensor:
        layout = self.cache.layout
        if name not in layout.parts:
            raise KeyError(name)
        if name == NORMALISED:
            return self.cache.rows(self.key)[..., :0]
        return layout.view(self.cache.rows(self.key), layout.names.index(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.cache.layout.parts)

    def __len__(self) -> int:
        return len(self.cache.layout.parts)

    @property
    def tokens(self) -> int:
        """Tokens that this layer-key holds."""
        return self.cache.length(self.key)

    def __repr__(self) -> str:
        return f"CacheEntry({self.key!r}, tokens={self.tokens})"


class KVCache(MutableMapping):
    """Rows of every layer-key in one buffer (slots, B, capacity, width), read like upstream's dict."""

    def __init__(self, max_seq_len: int | None = None) -> None:
        self.max_seq_len = max_seq_len
        self.layout: Layout | None = None
        self._buffer: torch.Tensor | None = None
        self._slots: dict[str, int] = {}
        self._lengths: dict[str, int] = {}
        self._foreign: dict[str, Mapping[str, torch.Tensor]] = {}
        self._min_slots = 0
        self.origin = 0

    def __getitem__(self, key: str) -> Mapping[str, torch.Tensor]:
        if key in self._foreign:
            return self._foreign[key]
        if self._lengths.get(key) is None:
            raise KeyError(key)
        return CacheEntry(self, key)

    def __setitem__(self, key: str, entry: Mapping[str, torch.Tensor]) -> None:
        if isinstance(entry, CacheEntry) and entry.cache is self and entry.key == key:
            self._foreign.pop(key, None)
        else:
            self._foreign[key] = entry

    def __delitem__(self, key: str) -> None:
        self[key]
        self._foreign.pop(key, None)
        self._lengths.pop(key, None)

    def __iter__(self) -> Iterator[str]:
        yield from self._lengths
        yield from (key for key in self._foreign if key not in self._lengths)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer. (`numel` of an entry's `k_rope` counts one shared key once a head.)"""
        return 0 if self._buffer is None else self._buffer.nbytes

    @property
    def capacity(self) -> int:
        """Tokens that fit before the buffer grows."""
        return 0 if self._buffer is None else self._buffer.shape[2]

    def length(self, key: str) -> int:
        """Tokens cached under `key`, 0 when there are none."""
        return self._lengths.get(key, 0)

    def rows(self, key: str) -> torch.Tensor:
        """(B, S, width): everything cached under `key`, a view."""
        return self._buffer[self._slots[key], :, : self._lengths[key]]

    def owns(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is a view of this cache's buffer."""
        return (
            self._buffer is not None
            and tensor.untyped_storage().data_ptr() == self._buffer.untyped_storage().data_ptr()
        )

    def truncate(self, tokens: int) -> None:
        """Forget every token past the first `tokens` of each layer-key.

        Raises:
            ValueError: when `tokens` is negative.
        """
        if tokens < 0:
            raise ValueError(f"tokens={tokens}: must be at least 0")
        for key, length in self._lengths.items():
            self._lengths[key] = min(length, tokens)

    def forget(self, key: str) -> None:
        """Drop what is cached under `key`, if anything; its slot is used again."""
        self._lengths.pop(key, None)

    def reserve_slots(self, count: int) -> None:
        """Make room for `count` layer-keys when the buffer is next allocated."""
        self._min_slots = max(self._min_slots, count)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Take back what the block appended when it raises."""
        lengths, foreign = dict(self._lengths), dict(self._foreign)
        try:
            yield
        except BaseException:
            self._lengths, self._foreign = lengths, foreign
            raise

    def append(self, key: str, layout: Layout, parts: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Write new tokens (B, T, width of each part) under `key`; returns all its rows, (B, S, width).

        Raises:
            ValueError: as `place`.
        """
        new = parts[0]
        batch, count = new.shape[:2]
        rows = self.place(key, layout, batch, count, new.dtype, new.device)
        rows[..., : layout.widths[0]].copy_(parts[0].detach().reshape(batch, count, layout.widths[0]))
        rows[..., layout.widths[0] :].copy_(parts[1].detach().reshape(batch, count, layout.widths[1]))
        return self.rows(key)

    def place(
        self, key: str, layout: Layout, batch: int, count: int, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Count `count` new tokens under `key`; returns their rows, (B, T, width), which the caller writes.

        Raises:
            ValueError: before anything is changed, when the layout or batch differs from what is cached,
                or the context would grow past max_seq_len.
        """
        start = self.length(key)
        self._check(key, layout, batch, start + count)
        self._grow(key, layout, batch, start + count, dtype, device)
        self._lengths[key] = start + count
        return self._buffer[self._slots[key], :, start : start + count]

    def fix(self, keys: Sequence[str], tokens: int, table: torch.Tensor) -> FixedRows:
        """The slots of `keys`, which hold as many tokens each, at a capacity of at least `tokens` that stays.

        Raises:
            ValueError: when the keys hold different numbers of tokens or none, entries of somebody else are
                among them, or `tokens` is more than max_seq_len.
        """
        lengths = {self.length(key) for key in keys}
        if len(lengths) != 1 or 0 in lengths or any(key in self._foreign for key in keys):
            raise ValueError(
                f"kv_cache: its {len(keys)} layer-keys hold {sorted(lengths)} tokens; fill it by one model"
            )
        if self.origin != 0:
            raise ValueError(f"kv_cache: starts at position {self.origin}, must start at 0")
        self._check(keys[0], self.layout, self._buffer.shape[1], tokens)
        self._grow(keys[0], self.layout, self._buffer.shape[1], tokens, self._buffer.dtype, self._buffer.device)
        return FixedRows(self, keys, table)

    def _check(self, key: str, layout: Layout, batch: int, needed: int) -> None:
        if self.layout is not None and self.layout != layout:
            raise ValueError(
                f"kv_cache: holds {self.layout.names} of widths {self.layout.widths}, not {layout.names} "
                f"of {layout.widths}; use one cache a model"
            )
        if self._buffer is not None and self._lengths and self._buffer.shape[1] != batch:
            raise ValueError(f"kv_cache: holds a batch of {self._buffer.shape[1]}, input_ids has one of {batch}")
        if self.max_seq_len is not None and needed > self.max_seq_len:
            raise ValueError(f"kv_cache[{key!r}]: {needed} tokens do not fit into max_seq_len={self.max_seq_len}")

    def _grow(
        self, key: str, layout: Layout, batch: int, needed: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Slots and capacity for `needed` tokens under `key`, keeping what is cached."""
        slot = self._slots.setdefault(key, len(self._slots))
        old = self._buffer
        stale = old is not None and not self._lengths and (old.shape[1] != batch or old.dtype != dtype)
        if old is not None and not stale and slot < old.shape[0] and needed <= old.shape[2]:
            return
        slots, capacity = max(slot + 1, self._min_slots), max(needed, FIRST_CAPACITY)
        if old is not None and not stale:
            slots, dtype, device = max(slots, old.shape[0]), old.dtype, old.device
            capacity = old.shape[2] if needed <= old.shape[2] else max(needed, 2 * old.shape[2])
        if self.max_seq_len is not None:
            capacity = min(capacity, self.max_seq_len)
        self.layout = layout
        self._buffer = torch.empty((slots, batch, capacity, sum(layout.widths)), dtype=dtype, device=device)
        for other, length in self._lengths.items():
            self._buffer[self._slots[other], :, :length] = old[self._slots[other], :, :length]


class FixedRows:
    """Slots of a cache at a capacity that stays, and on the device how far they are filled.

    A decode step writes each layer-key's row at `position` (B) and reads the first `lengths` = position + 1 (B):
    shapes and addresses are the same at every step, and the host need not know the position. `table` holds the
    rotations of all positions, (P, dr/2, 2).
    """

    def __init__(self, cache: KVCache, keys: Sequence[str], table: torch.Tensor) -> None:
        self.cache, self.keys, self.table = cache, keys, table
        self._rows = {key: cache._buffer[cache._slots[key]] for key in keys}
        buffer, start = cache._buffer, cache.length(keys[0])
        self.position = torch.full((buffer.shape[1],), start, dtype=torch.int64, device=buffer.device)
        self.lengths = torch.full((buffer.shape[1],), start + 1, dtype=torch.int32, device=buffer.device)
        self._host = start

    def rows(self, key: str) -> torch.Tensor:
        """(B, capacity, width)."""
        return self._rows[key]

    def count(self) -> None:
        """Tell the cache of one more token under every key."""
        self._host += 1
        self.cache._lengths.update(dict.fromkeys(self.keys, self._host))

    def current(self) -> bool:
        """Whether the cache still is as the last step left it: the same buffer, and no other tokens."""
        if {self.cache.length(key) for key in self.keys} != {self._host}:
            return False
        return all(self.cache.owns(self._rows[key]) for key in self.keys)

    def advance(self) -> None:
        """Move to the next position, by kernels alone."""
        self.position += 1
        self.lengths += 1


def storage_of(kv_cache: MutableMapping) -> KVCache:
    """The KVCache behind a cache that a caller passed: itself, or the one its entries belong to, or a new one."""
    if isinstance(kv_cache, KVCache):
        return kv_cache
    for entry in kv_cache.values():
        if isinstance(entry, CacheEntry):
            return entry.cache
    return KVCache()


def mirror(kv_cache: MutableMapping, storage: KVCache) -> None:
    """Make `storage` hold what the caller's dict holds: keys it lost are forgotten, entries of others taken in."""
    if kv_cache is storage:
        return
    for key in list(storage):
        if key not in kv_cache:
            del storage[key]
    for key, entry in kv_cache.items():
        storage[key] = entry


def cached_tokens(kv_cache: Mapping, key: str) -> int:
    """Tokens under `key` in a KVCache or a plain dict, whoever wrote them."""
    entry = kv_cache.get(key)
    if entry is None:
        return 0
    return entry.tokens if isinstance(entry, CacheEntry) else next(iter(entry.values())).shape[1]


def _own(
    kv_cache: MutableMapping,
    key: str,
    layout: Layout,
    adopt: Callable[[Mapping[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]],
) -> KVCache:
    """The storage behind `kv_cache`, holding under `key` what the caller's entry holds."""
    storage = storage_of(kv_cache)
    entry = kv_cache.get(key)
    if entry is None:
        storage.forget(key)
    elif not (isinstance(entry, CacheEntry) and entry.cache is storage):
        first, second = entry[layout.names[0]], entry[layout.names[1]]
        if storage.owns(first) and storage.owns(second):
            old = (first.clone(), second[:, :, 0].clone() if layout.shared else second.clone())
        else:
            old = adopt(entry)
        storage.forget(key)
        storage.append(key, layout, old)
    return storage


def extend(
    kv_cache: MutableMapping,
    key: str,
    layout: Layout,
    parts: tuple[torch.Tensor, torch.Tensor],
    adopt: Callable[[Mapping[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """Append new tokens under `key` and return all its rows (B, S, width).

    `adopt` turns an entry that somebody else wrote into the two parts that we store; it is asked once.
    Where gradients are recorded the new rows keep theirs, the cached ones are constants.
    """
    storage = _own(kv_cache, key, layout, adopt)
    past = storage.length(key)
    rows = storage.append(key, layout, parts)
    kv_cache[key] = CacheEntry(storage, key)
    if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
        batch, new = parts[0].shape[:2]
        wide = zip(parts, layout.widths, strict=True)
        fresh = torch.cat([part.reshape(batch, new, width).to(rows.dtype) for part, width in wide], dim=-1)
        return torch.cat((rows[:, :past].detach().clone(), fresh), dim=1)
    return rows


def extend_with(
    kv_cache: MutableMapping,
    key: str,
    layout: Layout,
    new: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    adopt: Callable[[Mapping[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]],
    write: Callable[[torch.Tensor], None],
) -> torch.Tensor:
    """`extend` by `new` = (B, T) tokens that `write` puts into their rows (B, T, width). It has no gradients."""
    storage = _own(kv_cache, key, layout, adopt)
    write(storage.place(key, layout, *new, dtype, device))
    kv_cache[key] = CacheEntry(storage, key)
    return storage.rows(key)
