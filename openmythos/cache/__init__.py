"""The key/value cache: slots with a length per sequence, and its view as upstream's dict of layer-keys."""

from __future__ import annotations

from openmythos.cache.core import FIRST_CAPACITY, Layout, SlotCache
from openmythos.cache.mapping import (
    NORMALISED,
    CacheEntry,
    KVCache,
    cached_tokens,
    layer_keys,
    mirror,
    open_rows,
    storage_of,
)
from openmythos.cache.rows import Rows

__all__ = [
    "FIRST_CAPACITY",
    "NORMALISED",
    "CacheEntry",
    "KVCache",
    "Layout",
    "Rows",
    "SlotCache",
    "cached_tokens",
    "layer_keys",
    "mirror",
    "open_rows",
    "storage_of",
]
