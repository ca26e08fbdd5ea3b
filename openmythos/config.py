"""The hyperparameters of the model, and the seven published variants."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

ATTENTION_TYPES = ("gqa", "mla")


@dataclass
class MythosConfig:
    """Hyperparameters of an OpenMythos model, under upstream's names and defaults.

    Fields are checked when the config is made, and again when a model is built from it, since they may change in
    between. Attention fields are checked only for the chosen attention: `n_kv_heads` and `dim // n_heads` for "gqa",
    the ranks and head sizes for "mla".

    Any positive `act_threshold` is allowed; above 1 it disables halting.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """

    vocab_size: int = 32000
    dim: int = 2048
    n_heads: int = 16
    n_kv_heads: int = 4
    max_seq_len: int = 4096
    max_loop_iters: int = 16
    prelude_layers: int = 2
    coda_layers: int = 2
    attn_type: str = "mla"
    kv_lora_rank: int = 512
    q_lora_rank: int = 1536
    qk_rope_head_dim: int = 64
    qk_nope_head_dim: int = 128
    v_head_dim: int = 128
    n_experts: int = 64
    n_shared_experts: int = 2
    n_experts_per_tok: int = 4
    expert_dim: int = 512
    act_threshold: float = 0.99
    rope_theta: float = 500000.0
    lora_rank: int = 16
    max_output_tokens: int = 4096
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self.validate()

    @property
    def head_dim(self) -> int:
        """Head size of grouped-query attention, `dim // n_heads`."""
        return self.dim // self.n_heads

    @property
    def ffn_dim(self) -> int:
        """Hidden width of the dense SwiGLU in prelude and coda, `dim * 4 // 3`."""
        return self.dim * 4 // 3

    @property
    def loop_dim(self) -> int:
        """Leading channels that carry the loop-index embedding, `dim // 8`."""
        return self.dim // 8

    def validate(self) -> None:
        """Raise ValueError for the first field with an invalid value."""
        if self.attn_type not in ATTENTION_TYPES:
            raise ValueError(f"attn_type={self.attn_type!r}: allowed are 'gqa' and 'mla'")
        for name in ("vocab_size", "dim", "n_heads", "max_seq_len", "max_loop_iters", "n_experts", "expert_dim"):
            self._check_int(name, 1)
        for name in ("prelude_layers", "coda_layers", "n_shared_experts", "lora_rank"):
            self._check_int(name, 0)
        self._check_int("n_experts_per_tok", 0)
        if self.n_experts_per_tok > self.n_experts:
            raise ValueError(f"n_experts_per_tok={self.n_experts_per_tok}: allowed is 0 to n_experts={self.n_experts}")
        if not self.act_threshold > 0:
            raise ValueError(f"act_threshold={self.act_threshold}: must be positive (above 1 disables halting)")
        if not self.rope_theta > 0:
            raise ValueError(f"rope_theta={self.rope_theta}: must be positive")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: allowed is 0 <= dropout < 1")
        self._check_mla() if self.attn_type == "mla" else self._check_gqa()

    def _check_gqa(self) -> None:
        self._check_int("n_kv_heads", 1)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads={self.n_kv_heads}: must divide n_heads={self.n_heads}")
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(
                f"dim={self.dim}, n_heads={self.n_heads}: the head size dim // n_heads={self.head_dim} must be even "
                "and at least 2, since RoPE rotates pairs"
            )

    def _check_mla(self) -> None:
        for name in ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "v_head_dim"):
            self._check_int(name, 1)
        self._check_int("qk_rope_head_dim", 2)
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim={self.qk_rope_head_dim}: must be even, since RoPE rotates pairs")

    def _check_int(self, name: str, minimum: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise ValueError(f"{name}={value!r}: must be an int of at least {minimum}")

    @classmethod
    def from_any(cls, config: object) -> MythosConfig:
        """Copy any object or mapping with the fields of this config (upstream's config, a JSON object)."""
        names = [field.name for field in dataclasses.fields(cls)]
        if isinstance(config, dict):
            unknown = sorted(set(config) - set(names))
            if unknown:
                raise ValueError(f"config has unknown fields {unknown}; allowed are {names}")
            return cls(**config)
        return cls(**{name: getattr(config, name) for name in names if hasattr(config, name)})

    def to_dict(self) -> dict[str, int | float | str]:
        """The fields as a plain dict, for JSON."""
        return dataclasses.asdict(self)


def mythos_1b() -> MythosConfig:
    """1.06 B parameters: dim 2048, 64 experts of 2048, 16 loops, 4k context."""
    return MythosConfig(
        kv_lora_rank=256,
        q_lora_rank=512,
        qk_rope_head_dim=32,
        qk_nope_head_dim=64,
        v_head_dim=64,
        expert_dim=2048,
        lora_rank=8,
    )


def mythos_3b() -> MythosConfig:
    """3.04 B parameters: dim 3072, 64 experts of 4096, 16 loops, 4k context."""
    return MythosConfig(
        dim=3072,
        n_heads=24,
        n_kv_heads=6,
        kv_lora_rank=384,
        q_lora_rank=768,
        qk_rope_head_dim=32,
        qk_nope_head_dim=96,
        v_head_dim=96,
        expert_dim=4096,
        lora_rank=8,
    )


def mythos_10b() -> MythosConfig:
    """9.98 B parameters: dim 4096, 128 experts of 5632, 24 loops, 8k context."""
    return MythosConfig(
        dim=4096,
        n_heads=32,
        n_kv_heads=8,
        max_seq_len=8192,
        max_loop_iters=24,
        q_lora_rank=1024,
        n_experts=128,
        expert_dim=5632,
    )


def mythos_50b() -> MythosConfig:
    """50.4 B parameters: dim 6144, 256 experts of 9728, 32 loops, 8k context."""
    return MythosConfig(
        dim=6144,
        n_heads=48,
        n_kv_heads=8,
        max_seq_len=8192,
        max_loop_iters=32,
        prelude_layers=3,
        coda_layers=3,
        n_experts=256,
        n_shared_experts=4,
        expert_dim=9728,
        lora_rank=32,
    )


def mythos_100b() -> MythosConfig:
    """99.5 B parameters: dim 8192, 256 experts of 13568 with top-8, 32 loops, 1M context."""
    return MythosConfig(
        dim=8192,
        n_heads=64,
        n_kv_heads=8,
        max_seq_len=1_000_000,
        max_loop_iters=32,
        prelude_layers=4,
        coda_layers=4,
        q_lora_rank=2048,
        n_experts=256,
        n_shared_experts=4,
        n_experts_per_tok=8,
        expert_dim=13568,
        rope_theta=1_000_000.0,
        lora_rank=64,
        max_output_tokens=131072,
    )


def mythos_500b() -> MythosConfig:
    """497.8 B parameters: dim 12288, 512 experts of 23040 with top-8, 48 loops, 1M context."""
    return MythosConfig(
        vocab_size=100_000,
        dim=12288,
        n_heads=96,
        n_kv_heads=16,
        max_seq_len=1_000_000,
        max_loop_iters=48,
        prelude_layers=4,
        coda_layers=4,
        kv_lora_rank=1024,
        q_lora_rank=3072,
        n_experts=512,
        n_shared_experts=8,
        n_experts_per_tok=8,
        expert_dim=23040,
        rope_theta=1_000_000.0,
        lora_rank=128,
        max_output_tokens=131072,
    )


def mythos_1t() -> MythosConfig:
    """999.3 B parameters: dim 16384, 512 experts of 34560 with top-8, 64 loops, 1M context."""
    return MythosConfig(
        vocab_size=100_000,
        dim=16384,
        n_heads=128,
        n_kv_heads=16,
        max_seq_len=1_000_000,
        max_loop_iters=64,
        prelude_layers=6,
        coda_layers=6,
        kv_lora_rank=1024,
        q_lora_rank=4096,
        n_experts=512,
        n_shared_experts=8,
        n_experts_per_tok=8,
        expert_dim=34560,
        rope_theta=2_000_000.0,
        lora_rank=256,
        max_output_tokens=131072,
    )


VARIANTS = {
    function.__name__: function
    for function in (mythos_1b, mythos_3b, mythos_10b, mythos_50b, mythos_100b, mythos_500b, mythos_1t)
}
