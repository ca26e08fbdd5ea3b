"""OpenMythos: prelude layers once, one MoE block looped, coda layers once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping

import torch
from torch import nn

from openmythos import generation
from openmythos.cache import FixedRows, KVCache, cached_tokens, mirror, storage_of
from openmythos.config import MythosConfig
from openmythos.memory import gather_huge_pages
from openmythos.nn.block import TransformerBlock
from openmythos.nn.mask import CausalMask, Mask
from openmythos.nn.moe import MoEFFN
from openmythos.nn.norm import RMSNorm
from openmythos.nn.pristine import fusable, unchanged
from openmythos.nn.project import project, to_weight_dtype
from openmythos.nn.recurrent import RecurrentBlock
from openmythos.nn.rope import precompute_rope_freqs, rope_table
from openmythos.ops.precision import wide

INIT_STD = 0.02
_TABLES = ("freqs_cis", "freqs_cis_mla")


@fusable
class OpenMythos(nn.Module):
    """The recurrent-depth transformer language model under upstream's names, signatures and state dict.

    Runs in float32, bfloat16 and float16; with 16-bit weights the residual stream is float32. One seed
    gives upstream's initial weights.

    Raises:
        ValueError: from the config's checks, which run again here.
    """

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
        """Move or cast; the rotary table stays float32 and is made again where a cast or the meta device spoilt it."""
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
        x = self._embedded(input_ids)
        freqs_cis = torch.view_as_complex(self.rope[start_pos : start_pos + new])
        mask = self._mask(new, 0 if cache is None else start_pos - cache.origin, x)
        return self._layers(x, freqs_cis, mask, loops, cache, last_token_only)

    def decode(self, token: torch.Tensor, rows: FixedRows, n_loops: int) -> torch.Tensor:
        """Logits (B, 1, V) after one token (B, 1) a sequence at rows.position, which moves on; no value is read."""
        freqs_cis = torch.view_as_complex(self.rope.index_select(0, rows.position[:1]))
        logits = self._layers(self._embedded(token), freqs_cis, None, n_loops, rows, True)
        rows.advance()
        return logits

    def _embedded(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        return x.to(wide(x.dtype))

    def _layers(
        self,
        x: torch.Tensor,
        freqs_cis: torch.Tensor,
        mask: Mask,
        loops: int | None,
        cache: KVCache | FixedRows | None,
        last_token_only: bool,
    ) -> torch.Tensor:
        for i, layer in enumerate(self.prelude):
            x = self._layer(layer, x, freqs_cis, mask, cache, f"prelude_{i}")
        seen = mask if unchanged(self.recurrent, RecurrentBlock) else _as_tensor(mask)
        x = self.recurrent(x, x, freqs_cis, seen, loops, cache)
        for i, layer in enumerate(self.coda):
            x = self._layer(layer, x, freqs_cis, mask, cache, f"coda_{i}")
        if last_token_only:
            x = x[:, -1:]
        return project(self.head, to_weight_dtype(self.norm(x), self.head))

    @staticmethod
    def _layer(
        layer: nn.Module,
        x: torch.Tensor,
        freqs_cis: torch.Tensor,
        mask: Mask,
        cache: KVCache | FixedRows | None,
        key: str,
    ) -> torch.Tensor:
        mask = mask if unchanged(layer, TransformerBlock) else _as_tensor(mask)
        return layer(x, freqs_cis, mask, cache, cache_key=key)

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
            generation.check_vocabulary(input_ids, self.cfg.vocab_size)

    def cache_keys(self, loops: int) -> list[str]:
        """The layer-keys that a call with this many loops reads and extends."""
        prelude = [f"prelude_{i}" for i in range(len(self.prelude))]
        recurrent = [f"recurrent_loop_{t}" for t in range(loops)]
        return prelude + recurrent + [f"coda_{i}" for i in range(len(self.coda))]

    def _check_cache(self, kv_cache: MutableMapping, storage: KVCache, start_pos: int, loops: int) -> None:
        keys = self.cache_keys(loops)
        tokens = [cached_tokens(kv_cache, key) for key in keys]
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
        storage.max_seq_len = self.cfg.max_seq_len
        storage.reserve_slots(len(keys))

    def generate(
        self,
        input_ids: torch.Tensor,
        max_new_tokens: int = 64,
        n_loops: int = 8,
        temperature: float = 1.0,
        top_k: int = 50,
        **options,
    ) -> torch.Tensor:
        """Prompt and sampled continuation, (B, T + new); see `openmythos.generation.generate`."""
        return generation.generate(self, input_ids, max_new_tokens, n_loops, temperature, top_k, **options)

    def stream(
        self,
        input_ids: torch.Tensor,
        max_new_tokens: int = 64,
        n_loops: int = 8,
        temperature: float = 1.0,
        top_k: int = 50,
        **options,
    ) -> Iterator[torch.Tensor]:
        """The sampled tokens one at a time, (B, 1) each; see `openmythos.generation.stream`."""
        return generation.stream(self, input_ids, max_new_tokens, n_loops, temperature, top_k, **options)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in _TABLES:
            destination[prefix + name] = getattr(self, name)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        for name in _TABLES:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def load_state_dict(self, state_dict: dict, strict: bool = True, assign: bool = False):
        """As nn.Module's; upstream's per-expert keys and the stacked ones are both taken, rotary tables ignored."""
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


def _as_tensor(mask: Mask) -> torch.Tensor | None:
    return mask.tensor() if isinstance(mask, CausalMask) else mask


def _upstream_order(module: nn.Module) -> Iterator[nn.Module]:
    """module.modules() with the routed experts where upstream registers them: between router and shared ones."""
    yield module
    for name, child in module.named_children():
        yield from _upstream_order(child)
        if isinstance(module, MoEFFN) and name == "router":
            for expert in module.routed_experts:
                yield from (expert.gate, expert.up, expert.down)
