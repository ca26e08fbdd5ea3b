"""The cache as upstream's dict of layer-keys: `KVCache`, its entries, and plain dicts that callers pass.

`kv_cache={}` is upstream's protocol: after a call the dict holds {layer-key: {part name: tensor}}. The tensors are
views of a `KVCache`; entries that another implementation wrote are copied into it once. Inside a call layers use
slots; only this module translates names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager

import torch

from openmythos.cache.core import Layout, SlotCache
from openmythos.cache.rows import Rows

# An empty part that marks a latent as normalised; every copy of an entry keeps it.
NORMALISED = "normalised"

Entry = Mapping[str, torch.Tensor]
Adopt = Callable[[Entry], tuple[torch.Tensor, torch.Tensor]]


@functools.lru_cache(maxsize=64)
def layer_keys(prelude: int, loops: int, coda: int) -> tuple[str, ...]:
    """Upstream's names of the layers of a model, in the order in which they run."""
    return (
        *(f"prelude_{i}" for i in range(prelude)),
        *(f"recurrent_loop_{t}" for t in range(loops)),
        *(f"coda_{i}" for i in range(coda)),
    )


class CacheEntry(Mapping):
    """One layer-key of a cache: upstream's two tensors, as views created on access.

    Latent attention adds "normalised" (B, S, 0), which marks copies of the entry as written by this library.
    """

    def __init__(self, cache: KVCache, key: str) -> None:
        self.cache = cache
        self.key = key

    def _names(self) -> tuple[str, ...]:
        layout = self.cache.layout
        return (*layout.names, NORMALISED) if layout.shared else layout.names

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names():
            raise KeyError(name)
        layout, rows = self.cache.layout, self.cache.rows(self.key)
        return rows[..., :0] if name == NORMALISED else layout.view(rows, layout.names.index(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    @property
    def tokens(self) -> int:
        """The number of tokens of this layer-key."""
        return self.cache.length(self.key)

    def __repr__(self) -> str:
        return f"CacheEntry({self.key!r}, tokens={self.tokens})"


class KVCache(MutableMapping):
    """A `SlotCache` under upstream's layer-keys, read like upstream's dict.

    `origin` is the position of the first cached token.
    """

    def __init__(self, max_seq_len: int | None = None) -> None:
        self.core = SlotCache(max_seq_len)
        self.origin = 0
        self._slots: dict[str, int] = {}
        self._foreign: dict[str, Entry] = {}

    def __getitem__(self, key: str) -> Entry:
        if key in self._foreign:
            return self._foreign[key]
        if not self._holds(key):
            raise KeyError(key)
        return CacheEntry(self, key)

    def __setitem__(self, key: str, entry: Entry) -> None:
        if isinstance(entry, CacheEntry) and entry.cache is self and entry.key == key:
            self._foreign.pop(key, None)
        else:
            self._foreign[key] = self._separate(entry)

    def _separate(self, entry: Entry) -> Entry:
        """The entry, copied if its parts are views of this cache: their rows may be overwritten before they are read.

        A view is normalised even if the mark is missing.
        """
        if self.layout is None or not self.core.owns(entry[self.layout.names[0]]):
            return entry
        copied = {name: part.clone() for name, part in entry.items()}
        if self.layout.shared:
            copied[NORMALISED] = copied[self.layout.names[0]][..., :0]
        return copied

    def __delitem__(self, key: str) -> None:
        self[key]
        self._foreign.pop(key, None)
        self.forget(key)

    def __iter__(self) -> Iterator[str]:
        yield from (key for key in self._slots if self._holds(key))
        yield from (key for key in self._foreign if not self._holds(key))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _holds(self, key: str) -> bool:
        slot = self._slots.get(key)
        return slot is not None and self.core.lengths[slot] is not None

    @property
    def max_seq_len(self) -> int | None:
        """The maximum number of tokens, or None."""
        return self.core.max_seq_len

    @property
    def layout(self) -> Layout | None:
        """What a row holds; None before the first token."""
        return self.core.layout

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer. (`numel` of an entry's `k_rope` counts the shared key once for each head.)"""
        return 0 if self.core.buffer is None else self.core.buffer.nbytes

    @property
    def capacity(self) -> int:
        """The number of tokens that fit before the buffer grows."""
        return self.core.capacity

    def length(self, key: str) -> int:
        """The number of tokens under `key`."""
        return self.core.length(self._slots[key]) if key in self._slots else 0

    def rows(self, key: str) -> torch.Tensor:
        """(B, S, width): everything cached under `key`, a view."""
        return self.core.rows(self._slots[key])

    def slots(self, keys: Sequence[str]) -> list[int]:
        """The slots of `keys`; a key without a slot gets a new, empty one."""
        for key in keys:
            if key not in self._slots:
                self._slots[key] = self.core.new_slot()
        return [self._slots[key] for key in keys]

    def has_foreign(self, keys: Sequence[str]) -> bool:
        """Whether another implementation wrote the entry of one of `keys`."""
        return any(key in self._foreign for key in keys)

    def truncate(self, tokens: int | Sequence[int]) -> None:
        """Keep only the first `tokens` of each layer-key; one number, or one per sequence.

        Raises:
            ValueError: when a number is negative.
        """
        self.core.truncate(tokens)

    def forget(self, key: str) -> None:
        """Drop what is cached under `key`, if anything; its slot is reused."""
        if key in self._slots:
            self.core.lengths[self._slots[key]] = None

    def reserve_slots(self, count: int) -> None:
        """Make room for `count` layer-keys when the buffer is next allocated."""
        self.core.min_slots = max(self.core.min_slots, count)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Restore lengths and foreign entries when the block raises."""
        foreign = dict(self._foreign)
        try:
            with self.core.transaction():
                yield
        except BaseException:
            self._foreign = foreign
            raise

    def append(self, key: str, layout: Layout, parts: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Write new tokens (B, T, width of each part) under `key`; returns all its rows, (B, S, width).

        Raises:
            ValueError: before anything is changed, when the layout or batch differs from what is cached, or the
                context would grow past max_seq_len.
        """
        new = parts[0]
        rows = Rows(self.core, self.slots([key]), new.shape[1])
        rows.open(layout, new.shape[0], new.dtype, new.device)
        rows.append(0, tuple(part.detach() for part in parts))
        rows.commit()
        return self.rows(key)


def storage_of(kv_cache: MutableMapping) -> KVCache:
    """The KVCache of the cache that a caller passed: itself, the one that its entries belong to, or a new one."""
    if isinstance(kv_cache, KVCache):
        return kv_cache
    for entry in kv_cache.values():
        if isinstance(entry, CacheEntry):
            return entry.cache
    return KVCache()


def mirror(kv_cache: MutableMapping, storage: KVCache) -> None:
    """Synchronise `storage` with the caller's dict: drop keys that the dict lacks, note foreign entries."""
    if kv_cache is storage:
        return
    for key, entry in kv_cache.items():
        storage[key] = entry
    for key in list(storage):
        if key not in kv_cache:
            del storage[key]


def cached_tokens(kv_cache: Mapping, keys: Sequence[str]) -> list[int]:
    """The number of tokens under each key of a KVCache or a plain dict."""
    if isinstance(kv_cache, KVCache) and not kv_cache._foreign:
        return [kv_cache.length(key) for key in keys]
    return [_tokens(kv_cache.get(key)) for key in keys]


def _tokens(entry: Entry | None) -> int:
    if entry is None:
        return 0
    return entry.tokens if isinstance(entry, CacheEntry) else next(iter(entry.values())).shape[1]


def _take_in(storage: KVCache, key: str, entry: Entry | None, layout: Layout, adopt: Adopt) -> None:
    """Copy the caller's entry into the slot of `key`."""
    if entry is None:
        storage.forget(key)
    elif not (isinstance(entry, CacheEntry) and entry.cache is storage and entry.key == key):
        parts = adopt(storage._separate(entry))
        storage.forget(key)
        storage.append(key, layout, parts)
        storage._foreign.pop(key, None)


class NamedRows(Rows):
    """Rows that also enter their keys into the caller's dict once they are counted."""

    def __init__(self, storage: KVCache, keys: Sequence[str], count: int, kv_cache: MutableMapping) -> None:
        super().__init__(storage.core, storage.slots(keys), count)
        self.storage, self.keys, self.kv_cache = storage, keys, kv_cache

    def commit(self) -> None:
        """Count the new tokens, and enter the layer-keys into the dict."""
        super().commit()
        self.kv_cache.update((key, CacheEntry(self.storage, key)) for key in self.keys)


def open_rows(
    kv_cache: MutableMapping | None, keys: Sequence[str], count: int, layout: Layout, adopts: Sequence[Adopt]
) -> Rows | None:
    """The rows of `count` new tokens under each of `keys`; the caller writes them and then calls `commit`.

    `adopts[i]` turns an entry that another implementation wrote under `keys[i]` into the two parts that are stored.

    Raises:
        ValueError: when the keys do not all hold the same number of tokens.
    """
    if kv_cache is None:
        return None
    storage = storage_of(kv_cache)
    if storage is kv_cache and not storage._foreign:
        return Rows(storage.core, storage.slots(keys), count)
    for key, adopt in zip(keys, adopts, strict=True):
        _take_in(storage, key, kv_cache.get(key), layout, adopt)
    return NamedRows(storage, keys, count, kv_cache)
