"""Replaced forwards, hooks and subclasses anywhere in the loop take effect; removing them restores the fused path."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import nn

import openmythos
from openmythos import dispatch, explain_module, ops
from tests.models import small_model, tokens
from tests.tolerances import assert_within
from tests.upstream.oracle import pair

COMMON = [
    "recurrent.block",
    "recurrent.block.attn",
    "recurrent.block.attn.wo",
    "recurrent.block.attn_norm",
    "recurrent.block.ffn",
    "recurrent.block.ffn.router",
    "recurrent.block.ffn.routed_experts.1",
    "recurrent.block.ffn.routed_experts.3.gate",
    "recurrent.block.ffn.routed_experts.0.up",
    "recurrent.block.ffn.routed_experts.2.down",
    "recurrent.block.ffn.shared_experts.0",
    "recurrent.block.ffn.shared_experts.1.gate",
    "recurrent.block.ffn.shared_experts.1.up",
    "recurrent.block.ffn.shared_experts.0.down",
    "recurrent.block.ffn_norm",
    "recurrent.block.resid_drop",
    "recurrent.norm",
    "recurrent.injection",
    "recurrent.lora",
    "recurrent.lora.down",
    "recurrent.lora.scale",
    "recurrent.act",
    "recurrent.act.halt",
    "recurrent",
    "prelude.0",
    "prelude.0.attn",
    "prelude.0.ffn",
    "prelude.0.ffn.up",
    "prelude.0.attn_norm",
    "coda.0",
    "coda.0.ffn_norm",
    "embed",
    "norm",
    "head",
]
MLA = ["q_down", "q_norm", "q_up_nope", "q_up_rope", "kv_down", "kv_norm", "kv_up", "attn_drop"]
GQA = ["wq", "wk", "wv"]
PLACES = [("mla", path) for path in COMMON + [f"recurrent.block.attn.{name}" for name in MLA]]
PLACES += [("gqa", path) for path in COMMON[:4] + [f"recurrent.block.attn.{name}" for name in GQA]]
everywhere = pytest.mark.parametrize(("attn_type", "path"), PLACES, ids=[f"{kind}-{path}" for kind, path in PLACES])


def at(model: nn.Module, path: str) -> nn.Module:
    """The submodule at `path`, including routed experts, which our model does not register."""
    for name in path.split("."):
        model = model[int(name)] if name.isdigit() else getattr(model, name)
    return model


def changed(output: torch.Tensor) -> torch.Tensor:
    """A change to a module's output that is large enough to show in the result."""
    return output * 0.7 + 0.05


def replace_forward(module: nn.Module) -> Callable[[], None]:
    original = module.forward
    module.forward = lambda *args, **kwargs: changed(original(*args, **kwargs))

    def restore() -> None:
        module.forward = original

    return restore


def add_hook(module: nn.Module) -> Callable[[], None]:
    return module.register_forward_hook(lambda _module, _args, output: changed(output)).remove


def add_pre_hook(module: nn.Module) -> Callable[[], None]:
    return module.register_forward_pre_hook(lambda _module, args: (_shifted(args[0]), *args[1:])).remove


def _shifted(x: torch.Tensor) -> torch.Tensor:
    return changed(x) if x.is_floating_point() else x.flip(0)


def subclass(module: nn.Module) -> Callable[[], None]:
    cls = type(module)

    class Changed(cls):
        def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
            return changed(super().forward(*args, **kwargs))

    module.__class__ = Changed

    def restore() -> None:
        module.__class__ = cls

    return restore


CHANGES = {"forward": replace_forward, "hook": add_hook, "pre_hook": add_pre_hook, "subclass": subclass}


def served(model: nn.Module, ids: torch.Tensor) -> dict:
    """The calls that the dispatch table counted while the model ran."""
    with dispatch.record() as counts, torch.no_grad():
        model(ids, n_loops=3)
    return dict(counts)


@everywhere
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_honoured_and_undone(attn_type: str, path: str, change: Callable) -> None:
    theirs, ours = pair(attn_type)
    ids = tokens(2, 7)
    with torch.no_grad():
        before = ours(ids, n_loops=3)
        counts = served(ours, ids)
        change(at(theirs, path))
        restore = change(at(ours, path))
        want, found = theirs(ids, n_loops=3), ours(ids, n_loops=3)
        if not (path.endswith("lora.scale") and change is add_pre_hook):
            assert (want - before).abs().max() > 1e-3, "the change is felt upstream"
        assert_within("logits", found, want, 2e-5)
        restore()
        assert torch.equal(ours(ids, n_loops=3), before)
    assert served(ours, ids) == counts, "the fused path is back"


@everywhere
def test_a_change_is_honoured_with_a_cache_and_gradients(attn_type: str, path: str) -> None:
    theirs, ours = pair(attn_type)
    ids, caches = tokens(2, 7), ({}, {})
    for model in (theirs, ours):
        replace_forward(at(model, path))
    with torch.no_grad():
        for start, end in ((0, 5), (5, 6), (6, 7)):
            want, found = (
                model(ids[:, start:end], n_loops=2, kv_cache=cache, start_pos=start)
                for model, cache in zip((theirs, ours), caches, strict=True)
            )
            assert_within(f"logits of {start}:{end}", found, want, 2e-5)
    assert_within("logits with gradients", ours(ids, n_loops=2), theirs(ids, n_loops=2), 2e-5)


@pytest.mark.parametrize("path", ["recurrent.block", "recurrent.block.attn", "prelude.0", "recurrent"])
@pytest.mark.parametrize("attn_type", ["mla", "gqa"])
def test_a_hooked_layer_still_prefills_in_chunks(attn_type: str, path: str) -> None:
    model = small_model(attn_type)
    ids, cache = tokens(2, 9), {}
    with torch.no_grad():
        want = model(ids, n_loops=2)
        at(model, path).register_forward_hook(lambda _module, _args, output: None)
        model(ids[:, :4], n_loops=2, kv_cache=cache)
        found = model(ids[:, 4:], n_loops=2, kv_cache=cache, start_pos=4)
    assert_within("logits", found, want[:, 4:], 2e-5)


def test_replaced_get_a_is_honoured() -> None:
    theirs, ours = pair("mla")
    ids = tokens(2, 7)
    for model in (theirs, ours):
        injection = model.recurrent.injection
        injection.get_A = lambda injection=injection: torch.full_like(injection.log_A, 0.25)
    with torch.no_grad():
        want = theirs(ids, n_loops=3)
        assert_within("logits", ours(ids, n_loops=3), want, 2e-5)
        del ours.recurrent.injection.get_A
        assert (ours(ids, n_loops=3) - want).abs().max() > 1e-3
    A = ours.recurrent.injection.get_A()
    assert ((A > 0) & (A < 1)).all()


def test_act_replaced_as_the_tutorial_does_is_called_once_a_loop() -> None:
    theirs, ours = pair("mla", act_threshold=1.5)
    ids, calls = tokens(1, 5), []
    for model in (theirs, ours):
        act, seen = model.recurrent.act, []
        original = act.forward

        def forward(h: torch.Tensor, original: Callable = original, seen: list = seen) -> torch.Tensor:
            p = original(h)
            seen.append(p)
            return p

        act.forward = forward
        calls.append(seen)
        with torch.no_grad():
            model(ids, n_loops=6)
        act.forward = original
        with torch.no_grad():
            model(ids, n_loops=6)
        assert len(seen) == 6
    assert_within("p", torch.stack(calls[1]), torch.stack(calls[0]), 1e-5)


def test_whole_ffn_replaced_by_another_class() -> None:
    theirs, ours = pair("mla")
    ids = tokens(2, 7)
    torch.manual_seed(1)
    dense = nn.Sequential(nn.Linear(48, 48), nn.GELU())
    for model in (theirs, ours):
        model.recurrent.block.ffn = copy.deepcopy(dense)
    with torch.no_grad():
        assert_within("logits", ours(ids, n_loops=3), theirs(ids, n_loops=3), 2e-5)
    assert "recurrent.block.ffn" in explain_module(ours)


def test_linear_with_a_bias_put_in_place_of_one_without() -> None:
    theirs, ours = pair("mla")
    ids = tokens(2, 7)
    for path in ("recurrent.block.attn.wo", "recurrent.block.attn.kv_up", "prelude.0.ffn.gate", "recurrent.lora.down"):
        parent, name = path.rsplit(".", 1)
        old = at(theirs, path)
        torch.manual_seed(2)
        new = nn.Linear(old.in_features, old.out_features, bias=True)
        for model in (theirs, ours):
            setattr(at(model, parent), name, copy.deepcopy(new))
        with torch.no_grad():
            assert_within(path, ours(ids, n_loops=2), theirs(ids, n_loops=2), 2e-5)


def test_halting_head_without_a_bias() -> None:
    theirs, ours = pair("mla")
    for model in (theirs, ours):
        model.recurrent.act.halt.bias = None
    with torch.no_grad():
        assert_within("logits", ours(tokens(2, 7)), theirs(tokens(2, 7)), 2e-5)


@pytest.mark.parametrize("path", ["recurrent.block.attn.wo", "recurrent.lora.down", "prelude.0.ffn.down"])
def test_parametrised_weight(path: str) -> None:
    theirs, ours = pair("mla")

    class Halved(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight / 2

    for model in (theirs, ours):
        nn.utils.parametrize.register_parametrization(at(model, path), "weight", Halved())
    with torch.no_grad():
        assert_within("logits", ours(tokens(2, 5)), theirs(tokens(2, 5)), 2e-5)


def test_explain_module_names_what_was_changed_and_why() -> None:
    model = small_model()
    assert explain_module(model) == {}
    model.recurrent.act.forward = lambda h: h[..., 0]
    handle = model.recurrent.block.attn.register_forward_hook(lambda *args: None)
    subclass(model.prelude[0].ffn)
    reasons = explain_module(model)
    assert reasons["recurrent.act"] == "its forward was replaced"
    assert reasons["recurrent.block.attn"] == "has a hook"
    assert reasons["prelude.0.ffn"] == "is a Changed"
    assert len(reasons) == 3
    handle.remove()
    model.recurrent.act.forward = types.MethodType(openmythos.ACTHalting.forward, model.recurrent.act)
    assert set(explain_module(model)) == {"prelude.0.ffn"}


def test_explain_module_sees_routed_experts_and_dropout() -> None:
    model = small_model(dropout=0.1)
    replace_forward(model.recurrent.block.ffn.routed_experts[3])
    assert set(explain_module(model)) == {"recurrent.block.ffn.routed_experts.3"}
    reasons = explain_module(model.train())
    assert "recurrent.block.attn.attn_drop" in reasons
    assert "dropout=0.1" in reasons["recurrent.block.attn.attn_drop"]


@pytest.mark.parametrize("cached", [False, True], ids=["no_cache", "cache"])
def test_every_norm_has_an_eps_of_its_own(cached: bool) -> None:
    theirs, ours = pair("mla")
    for model in (theirs, ours):
        for index, norm in enumerate(part for part in model.modules() if type(part).__name__ == "RMSNorm"):
            norm.eps = 0.1 + 0.01 * index
    ids = tokens(2, 7)
    with torch.no_grad():
        want, found = (model(ids, n_loops=3, kv_cache={} if cached else None) for model in (theirs, ours))
    assert_within("logits", found, want, 2e-5)


def test_the_last_loop_computes_no_next_input(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given, original = small_model(), [], ops.loop_step_

    def loop_step_(*args: object, x_next: torch.Tensor | None, **options: object) -> None:
        given.append(x_next)
        original(*args, x_next=x_next, **options)

    monkeypatch.setattr(ops, "loop_step_", loop_step_)
    with torch.no_grad():
        model(tokens(2, 5), n_loops=3, kv_cache={})
    assert given == [None], "the loops before are one series"


class Traced(torch.Tensor):
    """A tensor that records the ops that are called on it."""

    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(str(func))
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("cached", [False, True], ids=["no_cache", "cache"])
def test_a_modified_child_may_return_another_kind_of_tensor(cached: bool) -> None:
    """Later calls go through the registered ops, which a tensor subclass can intercept."""
    model, ids = small_model(), tokens(2, 7)
    attention = model.prelude[0].attn
    with torch.no_grad():
        want = model(ids, n_loops=2, kv_cache={} if cached else None)
        attention.q_down.register_forward_hook(lambda _module, _args, out: out.as_subclass(Traced))
        Traced.seen.clear()
        found = model(ids, n_loops=2, kv_cache={} if cached else None)
    assert_within("logits", found.as_subclass(torch.Tensor), want, 1e-5)
    assert any("openmythos.rms_norm" in name for name in Traced.seen), Traced.seen


def test_a_16_bit_norm_feeds_16_bit_projections() -> None:
    model, seen = small_model().to(torch.bfloat16), []
    for part in (model.prelude[0].attn, model.recurrent.block.ffn):
        part.register_forward_pre_hook(lambda _module, args: seen.append(args[0].dtype))
    with torch.no_grad():
        model(tokens(1, 5), n_loops=1)
    assert seen == [torch.bfloat16] * 2


def test_a_hook_on_all_modules_sees_every_piece_of_the_loop() -> None:
    model, seen = small_model(), []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        with torch.no_grad():
            model(tokens(1, 5), n_loops=2)
    finally:
        handle.remove()
    for part in (model.recurrent.norm, model.recurrent.lora, model.recurrent.injection, model.recurrent.act):
        assert seen.count(part) == 2, type(part).__name__
    assert any(expert in seen for expert in model.recurrent.block.ffn.routed_experts)
