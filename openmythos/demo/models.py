"""The four models that the demo compares: upstream's in float32 and under autocast, ours in float32 and bfloat16."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

import torch
from torch import nn

from openmythos import KVCache, accelerate
from openmythos.demo.progress import Progress

SEED = 0
# mythos_1b with every width divided by four or eight; its 64 experts and 16 loops are kept.
SMALL = {
    "dim": 256,
    "n_heads": 4,
    "kv_lora_rank": 64,
    "q_lora_rank": 128,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "expert_dim": 256,
}
_NEEDED = {
    "open_mythos": "pip install --no-deps open-mythos",
    "transformers": "pip install transformers",
    "matplotlib": "pip install matplotlib",
}
BASELINE = "upstream float32"


class DemoError(RuntimeError):
    """The demo cannot run; the message says why and what to do."""


@dataclass(frozen=True)
class ComparedModel:
    """A model, its name in the table, and the kind of cache that it takes."""

    name: str
    model: nn.Module
    new_cache: Callable[[], MutableMapping]
    autocast: bool = False

    @property
    def ours(self) -> bool:
        """Whether the dispatch table serves the ops of this model."""
        return self.new_cache is KVCache

    def __call__(self, ids: torch.Tensor, loops: int, cache: MutableMapping, start_pos: int) -> torch.Tensor:
        """Logits (T, V) of one sequence of ids (1, T)."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            return self.model(ids, n_loops=loops, kv_cache=cache, start_pos=start_pos)[0]


def check_packages() -> None:
    """Raise DemoError naming the packages that are missing and how to install them."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        commands = " && ".join(_NEEDED[name] for name in missing)
        raise DemoError(f"needs packages that are not installed: {', '.join(missing)}; run {commands}")


def build(size: str, progress: Progress) -> list[ComparedModel]:
    """Upstream's model of that size with seeded weights, and ours with copies of them.

    Raises:
        DemoError: when upstream's package does not import.
    """
    progress.phase("import upstream's package")
    try:
        import open_mythos
    except ImportError as error:
        raise DemoError(f"the package open_mythos does not import: {error}") from error
    config = open_mythos.mythos_1b()
    for name, value in SMALL.items() if size == "small" else ():
        setattr(config, name, value)
    progress.phase("build upstream's model in float32, seeded")
    torch.manual_seed(SEED)
    upstream = open_mythos.OpenMythos(config).eval()
    progress.phase("accelerate a float32 copy")
    float32 = accelerate(upstream, copy=True, progress=False)
    progress.phase("accelerate a bfloat16 copy")
    bfloat16 = accelerate(upstream, dtype=torch.bfloat16, copy=True, progress=False)
    return [
        ComparedModel(BASELINE, upstream, dict),
        ComparedModel("upstream bf16 autocast", upstream, dict, autocast=True),
        ComparedModel("openmythos float32", float32, KVCache),
        ComparedModel("openmythos bfloat16", bfloat16, KVCache),
    ]


def cache_bytes(cache: MutableMapping) -> int:
    """Bytes of all cached tokens: of upstream's tensors, or of the rows in our cache."""
    if isinstance(cache, KVCache):
        return sum(rows.numel() * rows.element_size() for rows in map(cache.rows, cache))
    return sum(part.numel() * part.element_size() for entry in cache.values() for part in entry.values())
