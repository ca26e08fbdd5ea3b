"""mythos_1b whole: prefill of 128 tokens and decode at 16 loops, in float32 and bfloat16, per-token bytes read."""

from __future__ import annotations

import pytest
import torch

import openmythos
from bench.timing import streaming_read
from openmythos import KVCache

TOKENS, LOOPS = 128, 16


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request):
    torch.manual_seed(0)
    return openmythos.OpenMythos(openmythos.mythos_1b()).to(request.param)


def decode_bytes(model: openmythos.OpenMythos, loops: int) -> int:
    """Weight bytes that one token reads: everything dense once, the loop's active weights once a loop."""
    cfg, ffn = model.cfg, model.recurrent.block.ffn
    routed = ffn.gate_up.nbytes + ffn.down.nbytes
    looped = sum(part.nbytes for part in model.recurrent.parameters()) - routed
    looped += routed * cfg.n_experts_per_tok // cfg.n_experts
    once = sum(part.nbytes for part in model.parameters()) - sum(part.nbytes for part in model.recurrent.parameters())
    return once + loops * looped


@torch.no_grad()
def bench_decode(model, race):
    """One token after a prompt of 128."""
    ids = torch.randint(0, model.cfg.vocab_size, (1, TOKENS + 1))
    cache = KVCache(model.cfg.max_seq_len)
    model(ids[:, :TOKENS], n_loops=LOOPS, kv_cache=cache, last_token_only=True)

    def ours() -> None:
        cache.truncate(TOKENS)
        model(ids[:, TOKENS:], n_loops=LOOPS, kv_cache=cache, start_pos=TOKENS)

    ffn, topk = model.recurrent.block.ffn, model.cfg.n_experts_per_tok
    one_loop = [*ffn.shared_experts.parameters(), ffn.gate_up[:topk], ffn.down[:topk]]
    race(ours, {}, 9, streaming_read(one_loop), bytes=decode_bytes(model, LOOPS))


@torch.no_grad()
def bench_prefill(model, race):
    """Logits of 128 tokens, 0.68 TFLOP."""
    ids = torch.randint(0, model.cfg.vocab_size, (1, TOKENS))
    race(lambda: model(ids, n_loops=LOOPS, kv_cache=KVCache()), {}, rounds=3)
