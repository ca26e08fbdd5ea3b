"""The whole mythos_1b against upstream: prefill of 128 tokens, a decoded token, generation, a training step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import openmythos
from bench.baselines import upstream
from bench.case import Case
from bench.ceilings import best_linear, streaming_read
from bench.shapes import config, need
from openmythos import KVCache, use_backend
from openmythos.roofline import Cost, total
from openmythos.roofline import model as counts

TOKENS, LOOPS = 128, 16
GENERATED, GENERATE_LOOPS = 16, 8
TRAIN_TOKENS, TRAIN_LOOPS = 32, 2
# errors accumulate over layers and loops; 16-bit weights are compared with the float32 model
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.int64: 0.0}
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module")
def float32(smoke, device):
    """Our model in float32, and upstream's on the same weights."""
    cfg = config("1b", smoke)
    need(4 * counts.parameters(cfg), device)
    torch.manual_seed(0)
    ours = openmythos.OpenMythos(cfg).to(device).eval()
    return ours, upstream.model(cfg, ours.state_dict(), device)


@pytest.fixture(scope="module", params=DTYPES, ids=["float32", "bfloat16"])
def models(request, float32, device):
    """(ours in one dtype, upstream in float32)."""
    ours, theirs = float32
    if request.param == torch.float32:
        return ours, theirs
    need(2 * counts.parameters(ours.cfg), device)
    return openmythos.accelerate(ours, dtype=request.param, copy=True, progress=False).eval(), theirs


@pytest.fixture(scope="module")
def sizes(smoke) -> tuple[int, int]:
    """The number of prompt tokens, and of loops."""
    return (12, 3) if smoke else (TOKENS, LOOPS)


@pytest.fixture(scope="module")
def known(float32, sizes, device):
    """A prompt and one more token, upstream's float32 logits, and its cache, from one slow pass.

    Without upstream the logits are the reference's.
    """
    ours, theirs = float32
    tokens, loops = sizes
    ids = torch.randint(0, ours.cfg.vocab_size, (1, tokens + 1), device=device)
    cache: dict[str, dict[str, torch.Tensor]] = {}
    with torch.no_grad():
        if isinstance(theirs, str):
            return ids, _reference(lambda: ours(ids, n_loops=loops, kv_cache=cache)), {}
        logits = theirs(ids, n_loops=loops, kv_cache=cache)
    kept = {key: {name: part[:, :tokens] for name, part in entry.items()} for key, entry in cache.items()}
    return ids, logits, kept


def _reference(call: Callable[[], torch.Tensor]) -> torch.Tensor:
    with use_backend("reference"):
        return call()


def _cost(parts: dict[str, Cost]) -> Cost:
    return total(parts.values())


@torch.no_grad()
def bench_decode(models, known, sizes, compare_interleaved):
    """One token after a prompt of 128 tokens, at 16 loops."""
    ours, theirs = models
    (ids, logits, kept), (tokens, loops) = known, sizes
    cfg, weight = ours.cfg, ours.embed.weight
    prompt, token = ids[:, :tokens], ids[:, tokens:]
    cache = KVCache(cfg.max_seq_len)
    ours(prompt, n_loops=loops, kv_cache=cache, last_token_only=True)

    def decode(token):
        cache.truncate(tokens)
        return ours(token, n_loops=loops, kv_cache=cache, start_pos=tokens)

    def their_decode(token):
        copied = {key: dict(entry) for key, entry in kept.items()}
        return theirs(token, n_loops=loops, kv_cache=copied, start_pos=tokens)

    ffn, topk = ours.recurrent.block.ffn, cfg.n_experts_per_tok
    compare_interleaved(
        Case(
            ours=decode,
            inputs=[(token,)],
            expected=logits[:, tokens:].to(weight.dtype),
            cost=_cost(counts.decode(cfg, 1, tokens, loops, weight.dtype)),
            baselines={"upstream float32": theirs if isinstance(theirs, str) else their_decode},
            stream=streaming_read([*ffn.shared_experts.parameters(), ffn.gate_up[:topk], ffn.down[:topk]]),
            tokens=1,
            allowed=ALLOWED,
        )
    )


@torch.no_grad()
def bench_prefill(models, known, sizes, compare_interleaved, device):
    """Logits of 128 tokens at 16 loops, with a cache: without one both models leave the loop early."""
    ours, theirs = models
    (ids, logits, _), (tokens, loops) = known, sizes
    cfg, weight = ours.cfg, ours.embed.weight

    def prefill(ids):
        return ours(ids, n_loops=loops, kv_cache=KVCache(cfg.max_seq_len))

    their_prefill = theirs if isinstance(theirs, str) else lambda ids: theirs(ids, n_loops=loops, kv_cache={})
    compare_interleaved(
        Case(
            ours=prefill,
            inputs=[(ids[:, :tokens],)],
            expected=logits[:, :tokens].to(weight.dtype),
            cost=_cost(counts.forward(cfg, 1, tokens, 0, loops, weight.dtype, last_token_only=False)),
            baselines={"upstream float32": their_prefill if weight.dtype == torch.float32 else "timed with float32"},
            products=best_linear(tokens, cfg.dim, weight.dtype, device),
            tokens=tokens,
            allowed=ALLOWED,
        )
    )


@torch.no_grad()
def bench_generate(float32, compare_interleaved, smoke, device):
    """16 tokens after a prompt of 32 tokens at 8 loops, greedy, float32."""
    ours, theirs = float32
    new, loops, length = (4, 2, 6) if smoke else (GENERATED, GENERATE_LOOPS, 32)
    ids = torch.randint(0, ours.cfg.vocab_size, (1, length), device=device)
    greedy = {"max_new_tokens": new, "n_loops": loops, "top_k": 1}
    parts = [_cost(counts.forward(ours.cfg, 1, length, 0, loops, torch.float32))]
    parts += [_cost(counts.decode(ours.cfg, 1, length + step, loops, torch.float32)) for step in range(new - 1)]
    compare_interleaved(
        Case(
            ours=lambda ids: ours.generate(ids, **greedy),
            inputs=[(ids,)],
            expected=_reference(lambda: ours.generate(ids, **greedy)),
            cost=total(parts),
            baselines={"upstream": theirs if isinstance(theirs, str) else lambda ids: theirs.generate(ids, **greedy)},
            tokens=new,
            allowed=ALLOWED,
        )
    )


def bench_train_step(float32, compare_interleaved, smoke, device):
    """Forward and backward of 32 tokens at 2 loops, float32, without the optimiser."""
    ours, theirs = float32
    tokens, loops = (10, 2) if smoke else (TRAIN_TOKENS, TRAIN_LOOPS)
    need(2 * 4 * counts.parameters(ours.cfg), device)
    ids = torch.randint(0, ours.cfg.vocab_size, (1, tokens + 1), device=device)

    def step(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        model.requires_grad_(True)
        probe = model.recurrent.block.attn_norm.weight

        def train(ids: torch.Tensor) -> torch.Tensor:
            logits = model(ids[:, :-1], n_loops=loops)
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[0, 1:]).backward()
            gradient = probe.grad
            model.zero_grad(set_to_none=True)
            return gradient

        return train

    train = step(ours)
    compare_interleaved(
        Case(
            ours=train,
            inputs=[(ids,)],
            expected=_reference(lambda: train(ids)),
            cost=_cost(counts.train_step(ours.cfg, 1, tokens, loops, torch.float32)),
            baselines={"upstream": theirs if isinstance(theirs, str) else step(theirs)},
            products=best_linear(tokens, ours.cfg.dim, torch.float32, device),
            tokens=tokens,
            allowed=ALLOWED,
        )
    )
