"""Under torch.autocast results are as close to upstream's float32 results as upstream's own under autocast."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models import small_model, tokens
from tests.tolerances import AUTOCAST_FACTOR, errors
from tests.upstream.oracle import gradients, pair

WIDE = {"dim": 128, "vocab_size": 257, "expert_dim": 67, "kv_lora_rank": 48, "q_lora_rank": 64, "max_seq_len": 64}
SEEDS = range(4)


@pytest.mark.parametrize("attn_type", ["mla", "gqa"])
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("cached", [False, True], ids=["no_cache", "cache"])
def test_forward_error(attn_type: str, grad: bool, cached: bool) -> None:
    ours_error = theirs_error = 0.0
    for seed in SEEDS:
        theirs, ours = pair(attn_type, seed, **WIDE)
        ids = tokens(2, 64, 257, seed)
        with torch.no_grad():
            exact = theirs(ids, n_loops=6)
        with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
            plain = theirs(ids, n_loops=6, kv_cache={} if cached else None)
            found = ours(ids, n_loops=6, kv_cache={} if cached else None)
        assert found.dtype == plain.dtype
        ours_error += errors(found, exact).frobenius / len(SEEDS)
        theirs_error += errors(plain, exact).frobenius / len(SEEDS)
    assert ours_error <= AUTOCAST_FACTOR * theirs_error, f"ours {ours_error:.2e}, upstream {theirs_error:.2e}"


@pytest.mark.parametrize("attn_type", ["mla", "gqa"])
def test_gradient_error(attn_type: str) -> None:
    theirs, ours = pair(attn_type, **WIDE)
    ids = tokens(2, 48, 257)
    found = []
    for model, cast in ((theirs, False), (theirs, True), (ours, True)):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            logits = model(ids, n_loops=3)
        F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten()).backward()
        found.append({name: gradient.clone() for name, gradient in gradients(model).items()})
    exact, plain, mine = found
    flat = [torch.cat([part[name].flatten() for name in sorted(exact)]) for part in (exact, plain, mine)]
    ours_error, theirs_error = errors(flat[2], flat[0]).frobenius, errors(flat[1], flat[0]).frobenius
    assert ours_error <= AUTOCAST_FACTOR * theirs_error, f"ours {ours_error:.2e}, upstream {theirs_error:.2e}"


def test_modules_follow_upstreams_dtypes() -> None:
    theirs, ours = pair("mla", **WIDE)
    x = torch.randn(2, 5, 128)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for path in (
            "prelude.0.ffn",
            "recurrent.lora.down",
            "recurrent.act",
            "recurrent.norm",
            "prelude.0.attn.q_down",
        ):
            a, b = theirs.get_submodule(path)(x), ours.get_submodule(path)(x)
            assert a.dtype == b.dtype, path
            assert errors(b, a).frobenius < 1e-2, path


class Casts(TorchDispatchMode):
    """Counts the casts of tensors of one shape."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten._to_copy and args[0].shape == self.shape:
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("hooked", [False, True], ids=["fused", "hooked"])
def test_stacked_experts_are_cast_once_a_forward_and_not_kept(hooked: bool) -> None:
    model, ids = small_model(), tokens(2, 7)
    if hooked:
        model.recurrent.act.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        before = model(ids, n_loops=4)
        with torch.autocast("cpu", torch.bfloat16), Casts(model.recurrent.block.ffn.gate_up.shape) as casts:
            model(ids, n_loops=4)
        assert casts.count == 1
        assert torch.equal(model(ids, n_loops=4), before), "the cast is dropped"
