"""mythos_1b at its real widths with few experts: the shapes that kernels are tuned for."""

from __future__ import annotations

import copy

import pytest
import torch

import openmythos
from tests.models import tokens
from tests.tolerances import AUTOCAST_FACTOR, MODEL_LIMITS, assert_close, assert_within, errors
from tests.upstream.oracle import upstream

pytestmark = pytest.mark.slow
EXPERTS = {"n_experts": 2, "n_experts_per_tok": 2, "vocab_size": 1031, "max_seq_len": 256}


@pytest.fixture(scope="module")
def models() -> tuple[torch.nn.Module, openmythos.OpenMythos]:
    """Upstream's and ours, with upstream's own initial weights."""
    theirs_config, ours_config = upstream.MythosConfig(), openmythos.mythos_1b()
    for name, value in {**ours_config.to_dict(), **EXPERTS}.items():
        setattr(theirs_config, name, value)
    for name, value in EXPERTS.items():
        setattr(ours_config, name, value)
    torch.manual_seed(0)
    theirs = upstream.OpenMythos(theirs_config).eval()
    with torch.no_grad():
        theirs.recurrent.act.halt.bias.fill_(-2.0)
    ours = openmythos.OpenMythos(ours_config).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def test_prefill_and_decode(models: tuple) -> None:
    ids = tokens(1, 67, 1031)
    caches = {}, {}
    with torch.no_grad():
        for start, end in ((0, 64), (64, 65), (65, 66), (66, 67)):
            want, found = (
                model(ids[:, start:end], n_loops=16, kv_cache=cache, start_pos=start)
                for model, cache in zip(models, caches, strict=True)
            )
            assert_within(f"logits of {start}:{end}", found, want, 1e-4)
            assert torch.equal(found.argmax(-1), want.argmax(-1))
    entry = caches[1]["recurrent_loop_0"]
    assert entry.cache.nbytes == (2 + 16 + 2) * entry.cache.capacity * 288 * 4
    assert caches[0]["recurrent_loop_0"]["c_kv"].numel() + caches[0]["recurrent_loop_0"]["k_rope"].numel() == 67 * 768


def test_the_rule_against_float64(models: tuple) -> None:
    theirs, ours = models
    ids = tokens(1, 33, 1031)
    with torch.no_grad():
        plain, found = theirs(ids, n_loops=4), ours(ids, n_loops=4)
        exact = copy.deepcopy(theirs).double()(ids, n_loops=4)
    assert_close("logits", found, exact, plain, torch.float32, limits=MODEL_LIMITS)


def test_bfloat16_against_upstream_under_autocast(models: tuple) -> None:
    theirs, ours = models
    ids = tokens(1, 64, 1031)
    with torch.no_grad():
        exact = theirs(ids, n_loops=8)
        with torch.autocast("cpu", torch.bfloat16):
            plain, cast = theirs(ids, n_loops=8), ours(ids, n_loops=8)
        found = copy.deepcopy(ours).to(torch.bfloat16)(ids, n_loops=8)
    allowed = AUTOCAST_FACTOR * errors(plain, exact).frobenius
    assert errors(cast, exact).frobenius <= allowed
    assert errors(found, exact).frobenius <= allowed
