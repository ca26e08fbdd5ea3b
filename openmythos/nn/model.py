"""OpenMythos: prelude layers once, one MoE block looped, coda layers once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping

import torch
from torch import nn

from openmythos.cache import KVCache, Rows, cached_tokens, layer_keys, mirror, open_rows, storage_of
from openmythos.config import MythosConfig
from openmythos.memory import gather_huge_pages
from openmythos.nn import pieces
from openmythos.nn.block import TransformerBlock
from openmythos.nn.fusion import children_are_unmodified, fusable, is_exactly
from openmythos.nn.mask import CausalMask, Mask, as_tensor
from openmythos.nn.moe import MoEFFN
from openmythos.nn.norm import RMSNorm
from openmythos.nn.recurrent import RecurrentBlock
from openmythos.nn.rope import precompute_rope_freqs, rope_table
from openmythos.ops.core import direct
from openmythos.ops.precision import wide

INIT_STD = 0.02
_TABLES = ("freqs_cis", "freqs_cis_mla")


@fusable
class OpenMythos(nn.Module):
    """The recurrent-depth transformer language model under upstream's names, signatures and state dict.

    Runs in float32, bfloat16 and float16; with 16-bit weights the residual stream is float32. One seed
    gives upstream's initial weights. Upstream's methods `generate` and `stream` are functions of `openmythos.engine`,
    which builds on this package; `openmythos/__init__.py` attaches them.

    Raises:
        ValueError: from the config's checks, which run again here.
    """

    generate: Callable[..., torch.Tensor]
    stream: Callable[..., Iterator[torch.Tensor]]

    def __init__(self, cfg: MythosConfig) -> None:
        super().__init__()
        cfg.validate()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.dim)
        self.prelude = nn.ModuleList([TransformerBlock(cfg) for _ in range(cfg.prelude_layers)])
        self.recurrent = RecurrentBlock(cfg)
        self.coda = nn.ModuleList([TransformerBlock(cfg) for _ in range(cfg.coda_layers)])
        self.norm = RMSNorm(cfg.dim)
        self.head = nn.Linear(cfg.dim, cfg.vocab_size, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("rope", self._rope_table(self.embed.weight.device), persistent=False)
        self._init_weights()
        gather_huge_pages(self.parameters())

    def _rope_table(self, device: torch.device) -> torch.Tensor:
        cfg = self.cfg
        dim = cfg.qk_rope_head_dim if cfg.attn_type == "mla" else cfg.head_dim
        return rope_table(dim, cfg.max_seq_len, cfg.rope_theta, device)

    def _init_weights(self) -> None:
        """N(0, 0.02) for every linear and embedding weight, drawn in upstream's order of modules."""
        if self.embed.weight.is_meta:
            return
        for module in _upstream_order(self):
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)

    def _apply(self, fn: Callable, recurse: bool = True) -> OpenMythos:
        """Move or cast. The rotary table stays float32; it is recomputed if a cast or the meta device corrupted it."""
        tied = self.head.weight is self.embed.weight
        super()._apply(fn, recurse)
        if tied and self.head.weight is not self.embed.weight:
            self.head.weight = self.embed.weight
        self.rope = self._rope_table(self.embed.weight.device)
        gather_huge_pages(self.parameters())
        return self

    @property
    def freqs_cis(self) -> torch.Tensor:
        """Rotary phasors for heads of size dim // n_heads, complex64 (max_seq_len, head_dim/2)."""
        return self._freqs(self.cfg.head_dim, self.cfg.attn_type == "gqa")

    @property
    def freqs_cis_mla(self) -> torch.Tensor:
        """Rotary phasors for heads of size qk_rope_head_dim, complex64 (max_seq_len, qk_rope_head_dim/2)."""
        return self._freqs(self.cfg.qk_rope_head_dim, self.cfg.attn_type == "mla")

    def _freqs(self, dim: int, in_use: bool) -> torch.Tensor:
        if in_use:
            return torch.view_as_complex(self.rope)
        if self.rope.is_meta:
            return torch.empty((self.cfg.max_seq_len, (dim + 1) // 2), dtype=torch.complex64, device="meta")
        return precompute_rope_freqs(dim, self.cfg.max_seq_len, self.cfg.rope_theta).to(self.rope.device)

    @staticmethod
    def _causal_mask(seq_len: int, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Additive causal mask (1, 1, T, T): 0 on and below the diagonal, -inf above."""
        return CausalMask(seq_len, device, dtype).tensor()

    def _mask(self, new: int, past: int, x: torch.Tensor) -> Mask:
        if new == 1:
            return None
        if type(self)._causal_mask is not OpenMythos._causal_mask or "_causal_mask" in self.__dict__:
            return self._causal_mask(new, x.device, x.dtype)
        return CausalMask(new, x.device, x.dtype, past)

    def forward(
        self,
        input_ids: torch.Tensor,
        n_loops: int | None = None,
        kv_cache: MutableMapping | None = None,
        start_pos: int = 0,
        *,
        last_token_only: bool = False,
    ) -> torch.Tensor:
        """Logits of every position, or of the last one.

        input_ids integers (B, T) -> (B, T or 1, vocab_size) in the weights' dtype. n_loops may exceed
        max_loop_iters. `kv_cache`, a dict or a KVCache, is extended by the T tokens; start_pos is the number
        of tokens in it.

        Raises:
            ValueError: before anything is written, when input_ids is empty or holds an id outside the
                vocabulary (checked on the CPU), start_pos does not follow the cache, the context would pass
                max_seq_len, n_loops is below 1, or n_loops needs a loop that earlier calls left out.
        """
        self._check_ids(input_ids, start_pos)
        loops = self.recurrent.loops(n_loops) if isinstance(self.recurrent, RecurrentBlock) else n_loops
        if kv_cache is None:
            return self._run(input_ids, loops, None, start_pos, last_token_only)
        storage = storage_of(kv_cache)
        self._check_cache(kv_cache, storage, start_pos, loops or self.cfg.max_loop_iters)
        mirror(kv_cache, storage)
        with storage.transaction():
            logits = self._run(input_ids, loops, storage, start_pos, last_token_only)
        if storage is not kv_cache:
            kv_cache.update(storage.items())
        return logits

    def _run(
        self, input_ids: torch.Tensor, loops: int | None, cache: KVCache | None, start_pos: int, last_token_only: bool
    ) -> torch.Tensor:
        new = input_ids.shape[1]
        x, cos_sin = self.embedded(input_ids), self.rope[start_pos : start_pos + new]
        mask = self._mask(new, 0 if cache is None else start_pos - cache.origin, x)
        if not self.is_fusable():
            return self._call_layers(x, torch.view_as_complex(cos_sin), mask, loops, cache, last_token_only)
        rows = None
        if cache is not None:
            layers = (*self.prelude, *([self.recurrent.block] * loops), *self.coda)
            attn = self.recurrent.block.attn
            adopts = [layer.attn.adopt for layer in layers]
            rows = open_rows(cache, self.cache_keys(loops), new, attn.layout, adopts)
        logits = self.run(x, cos_sin, mask, loops, rows, last_token_only)
        if rows is not None:
            rows.commit()
        return logits

    def embedded(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The residual stream's first state, (B, T, dim) in float32 or wider."""
        x = self.embed(input_ids)
        return x.to(wide(x.dtype))

    def is_fusable(self) -> bool:
        """Whether no part of the model is modified, so that `run` computes what the modules would."""
        layers = (*self.prelude, *self.coda)
        return (
            children_are_unmodified(self)
            and isinstance(self.recurrent, RecurrentBlock)
            and self.recurrent.is_fusable()
            and all(isinstance(layer, TransformerBlock) and layer.is_fusable() for layer in layers)
        )

    def run(
        self,
        x: torch.Tensor,
        cos_sin: torch.Tensor,
        mask: Mask,
        loops: int,
        rows: Rows | None,
        last_token_only: bool,
    ) -> torch.Tensor:
        """The logits of an unmodified model: no further checks, and layers address the cache by slot.

        x (B, T, dim), cos_sin (T, dr/2, 2); `rows` holds the layers' slots in the order of `cache_keys`.
        """
        shape, trust, index = x.shape, pieces.Trust(unmodified=True, device=direct(x)), 0
        x = x.reshape(-1, shape[-1])
        for layer in self.prelude:
            x, index = layer.function(trust, cos_sin, mask, rows)(x, index), index + 1
        x, index = self.recurrent.run(x, x, cos_sin, mask, loops, rows, index), index + loops
        for layer in self.coda:
            x, index = layer.function(trust, cos_sin, mask, rows)(x, index), index + 1
        return self._logits(x.view(shape), last_token_only)

    def _call_layers(
        self,
        x: torch.Tensor,
        freqs_cis: torch.Tensor,
        mask: Mask,
        loops: int | None,
        cache: KVCache | None,
        last_token_only: bool,
    ) -> torch.Tensor:
        """`run` of a modified model: every layer is called as a module and fuses what it can."""

        def call(layer: nn.Module, x: torch.Tensor, key: str) -> torch.Tensor:
            seen = mask if is_exactly(layer, TransformerBlock) else as_tensor(mask)
            return layer(x, freqs_cis, seen, cache, cache_key=key)

        keys = layer_keys(len(self.prelude), 0, len(self.coda))
        for layer, key in zip(self.prelude, keys, strict=False):
            x = call(layer, x, key)
        seen = mask if is_exactly(self.recurrent, RecurrentBlock) else as_tensor(mask)
        x = self.recurrent(x, x, freqs_cis, seen, loops, cache)
        for layer, key in zip(self.coda, keys[len(self.prelude) :], strict=True):
            x = call(layer, x, key)
        return self._logits(x, last_token_only)

    def _logits(self, x: torch.Tensor, last_token_only: bool) -> torch.Tensor:
        if last_token_only:
            x = x[:, -1:]
        return pieces.linear(self.head)(pieces.to_weight_dtype(self.norm(x), self.head))

    def _check_ids(self, input_ids: torch.Tensor, start_pos: int) -> None:
        if input_ids.dim() != 2 or input_ids.shape[1] == 0:
            raise ValueError(f"input_ids {tuple(input_ids.shape)}: must be (B, T) with at least one token")
        if input_ids.is_floating_point() or input_ids.is_complex():
            raise ValueError(f"input_ids {input_ids.dtype}: must be integers")
        end = start_pos + input_ids.shape[1]
        if start_pos < 0 or end > self.cfg.max_seq_len:
            raise ValueError(
                f"start_pos={start_pos}: positions {start_pos} to {end - 1} do not fit into "
                f"max_seq_len={self.cfg.max_seq_len}"
            )
        if input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            check_vocabulary(input_ids, self.cfg.vocab_size)

    def cache_keys(self, loops: int) -> tuple[str, ...]:
        """The layer-keys that a call with this many loops reads and extends."""
        return layer_keys(len(self.prelude), loops, len(self.coda))

    def _check_cache(self, kv_cache: MutableMapping, storage: KVCache, start_pos: int, loops: int) -> None:
        keys = self.cache_keys(loops)
        tokens = cached_tokens(kv_cache, keys)
        most = max(tokens, default=0)
        if most == 0:
            storage.origin = start_pos
        elif start_pos != storage.origin + most:
            raise ValueError(
                f"start_pos={start_pos}: kv_cache holds {most} tokens, so the next one is at position "
                f"{storage.origin + most}"
            )
        for key, count in zip(keys, tokens, strict=True):
            if count != most:
                raise ValueError(
                    f"n_loops={loops}: kv_cache[{key!r}] holds {count} of {most} tokens, since earlier calls ran "
                    "fewer loops; call with no more loops than they ran, or start a new cache"
                )
        storage.core.max_seq_len = self.cfg.max_seq_len
        storage.reserve_slots(len(keys))

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in _TABLES:
            destination[prefix + name] = getattr(self, name)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        for name in _TABLES:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def load_state_dict(self, state_dict: dict, strict: bool = True, assign: bool = False):
        """As nn.Module's; accepts upstream's per-expert keys and the stacked ones, and ignores rotary tables."""
        state_dict = dict(state_dict)
        if "head.weight" not in state_dict and "embed.weight" in state_dict:
            state_dict["head.weight"] = state_dict["embed.weight"]
        tied = self.head.weight is self.embed.weight
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        if assign:
            if tied:
                self.head.weight = self.embed.weight
            self.rope = self._rope_table(self.embed.weight.device)
        return result


def check_vocabulary(input_ids: torch.Tensor, vocab_size: int) -> None:
    """Raise ValueError when an id is outside 0..vocab_size-1. Reads the values (a device sync on a GPU)."""
    if input_ids.numel() == 0:
        return
    low, high = (int(bound) for bound in input_ids.aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"input_ids holds {low if low < 0 else high}: allowed is 0 to vocab_size-1={vocab_size - 1}")


def _upstream_order(module: nn.Module) -> Iterator[nn.Module]:
    """module.modules() with the routed experts where upstream registers them: between router and shared experts."""
    yield module
    for name, child in module.named_children():
        yield from _upstream_order(child)
        if isinstance(module, MoEFFN) and name == "router":
            for expert in module.routed_experts.views():
                yield from (expert.gate, expert.up, expert.down)
