"""What an op has to move and to compute at least, counted from its shapes.

Bytes are the useful ones: each weight, cached row, input and output once, at its own size. FLOPs count a multiply and
an add as two. Statistics, masks and softmax are not counted: they are small beside the products.
"""

from __future__ import annotations

from dataclasses import dataclass

FLOAT32 = 4


@dataclass(frozen=True)
class Cost:
    """Bytes of weights, of cached keys and values and of activations that have to move, and the FLOPs to be done."""

    weights: float = 0.0
    cache: float = 0.0
    activations: float = 0.0
    flops: float = 0.0

    @property
    def bytes(self) -> float:
        """All bytes."""
        return self.weights + self.cache + self.activations

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.weights + other.weights,
            self.cache + other.cache,
            self.activations + other.activations,
            self.flops + other.flops,
        )

    def __mul__(self, times: float) -> Cost:
        return Cost(self.weights * times, self.cache * times, self.activations * times, self.flops * times)


def total(costs: list[Cost]) -> Cost:
    """The sum of costs."""
    return sum(costs, Cost())


def linear(rows: int, inputs: int, outputs: int, item: int) -> Cost:
    """x (rows, inputs) @ weight (outputs, inputs)^T, `item` bytes an element."""
    return Cost(inputs * outputs * item, 0, rows * (inputs + outputs) * item, 2 * rows * inputs * outputs)


def swiglu(rows: int, dim: int, hidden: int, item: int) -> Cost:
    """down(silu(gate x) * up x); the hidden channels never have to leave the chip."""
    return Cost(3 * dim * hidden * item, 0, 2 * rows * dim * item, 6 * rows * dim * hidden)


def rms_norm(rows: int, dim: int, item: int, *, add: bool = False) -> Cost:
    """One read and one write of a row; two of each where a residual is added."""
    return Cost(dim * FLOAT32, 0, rows * dim * item * (4 if add else 2), (5 if add else 4) * rows * dim)


def rope(tokens: int, heads: int, dim: int, item: int) -> Cost:
    """One read and one write of a head's row, and a cosine and a sine a pair of a token."""
    return Cost(tokens * dim * FLOAT32, 0, 2 * tokens * heads * dim * item, 3 * tokens * heads * dim)


def loop_step(rows: int, dim: int, rank: int, item: int) -> Cost:
    """Reads h, e, block_out, h_out and writes h, h_out, the next input: h_out is float32, the others have `item`."""
    moved = rows * dim * (5 * item + 2 * FLOAT32)
    return Cost((2 * rank + 4) * dim * FLOAT32, 0, moved, rows * dim * (4 * rank + 16))


def loop_step_backward(rows: int, dim: int, rank: int, item: int) -> Cost:
    """Reads h, e, block_out and three gradients, writes three; gradients of h_out are float32. h' is recomputed."""
    moved = rows * dim * (8 * item + FLOAT32)
    return Cost((2 * rank + 4) * dim * FLOAT32, 0, moved, rows * dim * (12 * rank + 40))


def seen_keys(new: int, total_keys: int, *, causal: bool = True) -> int:
    """Pairs of query and key that attention multiplies: query i of `new` sees total - new + i + 1 keys."""
    return new * (total_keys - new) + new * (new + 1) // 2 if causal else new * total_keys


@dataclass(frozen=True)
class Heads:
    """The sizes of latent attention: heads, latent, rope, nope and value widths."""

    heads: int
    latent: int
    rope: int
    nope: int
    value: int


def mla_attention(batch: int, new: int, keys: int, heads: Heads, item: int, *, absorbed: bool) -> Cost:
    """Attention of `new` causal queries over `keys` cached rows, both projections (w_uk, w_uv) included.

    Absorbed: 2 H [T dc (dn + dv) + pairs (2 dc + dr)] FLOPs a sequence; decompressed: 2 H [S dc (dn + dv) +
    pairs (dn + dr + dv)].
    """
    pairs = seen_keys(new, keys)
    up = heads.latent * (heads.nope + heads.value)
    if absorbed:
        products = new * up + pairs * (2 * heads.latent + heads.rope)
    else:
        products = keys * up + pairs * (heads.nope + heads.rope + heads.value)
    queries = batch * new * heads.heads * (heads.nope + heads.rope + heads.value)
    return Cost(
        weights=heads.heads * up * item,
        cache=batch * keys * (heads.latent + heads.rope) * item,
        activations=queries * item,
        flops=2 * batch * heads.heads * products,
    )


def distinct_experts(rows: int, experts: int, topk: int) -> float:
    """Experts that `rows` rows of uniform routing are expected to hit: E (1 - (1 - k/E)^N)."""
    return experts * (1 - (1 - topk / experts) ** rows)


@dataclass(frozen=True)
class Experts:
    """The sizes of a mixture: model width, an expert's width, routed experts, of them chosen, shared ones."""

    dim: int
    hidden: int
    experts: int
    topk: int
    shared: int

    @property
    def one(self) -> int:
        """Parameters of one routed expert; a shared one has `topk` times as many."""
        return 3 * self.dim * self.hidden

    @property
    def active_widths(self) -> int:
        """Expert-widths that serve one row: k routed and k for each shared expert."""
        return self.topk * (1 + self.shared)


def moe(rows: int, sizes: Experts, item: int, *, hit: float | None = None) -> Cost:
    """Routing, routed and shared experts; `hit` experts are read, those that uniform routing hits unless given."""
    hit = distinct_experts(rows, sizes.experts, sizes.topk) if hit is None else hit
    router = sizes.dim * sizes.experts
    return Cost(
        weights=((hit + sizes.topk * sizes.shared) * sizes.one + router) * item,
        activations=2 * rows * sizes.dim * item,
        flops=2 * rows * (sizes.active_widths * sizes.one + router),
    )
