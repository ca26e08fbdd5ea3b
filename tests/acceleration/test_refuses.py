"""accelerate refuses, before anything is moved, a source with modifications beyond its weights and config."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable

import pytest
import torch
from torch import nn

import openmythos
from tests.io.checkpoints import weights
from tests.models import tokens
from tests.upstream.oracle import pair, upstream


class _Linear(nn.Linear):
    pass


class _Attention(upstream.MLAttention):
    pass


class _Model(upstream.OpenMythos):
    pass


class _Tensor(torch.Tensor):
    pass


def _expert(model: nn.Module, index: int = 3) -> nn.Module:
    return model.recurrent.block.ffn.routed_experts[index]


def _replace_forward(model: nn.Module) -> None:
    model.coda[0].ffn.forward = lambda x: x


def _rebind_forward(model: nn.Module) -> None:
    model.coda[0].ffn.forward = types.MethodType(lambda self, x: x, model.coda[0].ffn)


def _replace_get_a(model: nn.Module) -> None:
    model.recurrent.injection.get_A = lambda: torch.full((48,), 0.5)


def _subclass_linear(model: nn.Module) -> None:
    _expert(model).up = _Linear(48, 19, bias=False)


def _extra_module(model: nn.Module) -> None:
    model.prelude[0].adapter = nn.Linear(2, 2)


def _extra_parameter(model: nn.Module) -> None:
    model.norm.shift = nn.Parameter(torch.zeros(48))


def _absent_parameter(model: nn.Module) -> None:
    del model.recurrent.injection.log_dt


def _other_shape(model: nn.Module) -> None:
    model.norm.weight = nn.Parameter(torch.ones(47))


def _frozen_expert(model: nn.Module) -> None:
    _expert(model).up.weight.requires_grad_(False)


def _cast_expert(model: nn.Module) -> None:
    _expert(model).down.bfloat16()


def _shared_expert_weight(model: nn.Module) -> None:
    _expert(model).up.weight = _expert(model, 1).up.weight


def _subclass_tensor(model: nn.Module) -> None:
    model.norm.weight = nn.Parameter(torch.ones(48).as_subclass(_Tensor))


def _changed_table(model: nn.Module) -> None:
    model.freqs_cis_mla.mul_(0.5)


def _longer_table(model: nn.Module) -> None:
    model.freqs_cis_mla = upstream.precompute_rope_freqs(6, 50)


def _no_layer(model: nn.Module) -> None:
    model.coda = nn.ModuleList()


CASES: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "replaced-forward": (_replace_forward, r"model.coda.0.ffn has a replaced forward"),
    "bound-forward": (_rebind_forward, r"model.coda.0.ffn has a replaced forward"),
    "replaced-get_A": (_replace_get_a, r"model.recurrent.injection has a replaced get_A"),
    "forward-hook": (
        lambda model: model.recurrent.block.attn.wo.register_forward_hook(lambda *args: None),
        r"model.recurrent.block.attn.wo has a hook \(forward_hooks\)",
    ),
    "pre-hook": (lambda model: model.register_forward_pre_hook(lambda *args: None), r"model has a hook"),
    "backward-hook": (
        lambda model: model.norm.register_full_backward_hook(lambda *args: None),
        r"model.norm has a hook",
    ),
    "state-dict-hook": (
        lambda model: model.register_state_dict_post_hook(lambda *args: None),
        r"model has a hook \(state_dict_hooks\)",
    ),
    "hook-on-an-expert": (
        lambda model: _expert(model).register_forward_hook(lambda *args: None),
        r"model.recurrent.block.ffn.routed_experts.3 has a hook",
    ),
    "tensor-hook": (
        lambda model: model.norm.weight.register_hook(lambda grad: grad),
        r"model.norm.weight has a hook",
    ),
    "accumulate-hook": (
        lambda model: model.norm.weight.register_post_accumulate_grad_hook(lambda parameter: None),
        r"model.norm.weight has a hook",
    ),
    "subclassed-linear": (_subclass_linear, r"routed_experts.3.up is a .*_Linear, expected Linear"),
    "subclassed-attention": (
        lambda model: setattr(model.prelude[0], "attn", _Attention(model.cfg)),
        r"model.prelude.0.attn is a .*_Attention, expected MLAttention",
    ),
    "extra-module": (_extra_module, r"model.prelude.0.adapter is a .* that is not in the config"),
    "extra-parameter": (_extra_parameter, r"unexpected: norm.shift"),
    "absent-parameter": (_absent_parameter, r"missing: recurrent.injection.log_dt"),
    "other-shape": (_other_shape, r"mis-shaped: norm.weight \(47,\) instead of \(48,\)"),
    "absent-layer": (_no_layer, r"model.coda.0 is missing"),
    "changed-config": (lambda model: setattr(model.cfg, "expert_dim", 20), r"mis-shaped: "),
    "changed-heads": (
        lambda model: setattr(model.cfg, "n_heads", 8),
        r"mis-shaped: prelude.0.attn.q_up_nope.weight",
    ),
    "two-configs": (
        lambda model: setattr(model.recurrent, "cfg", dataclasses.replace(model.cfg, act_threshold=2.0)),
        r"model.recurrent.cfg differs from model.cfg: it has act_threshold=2.0",
    ),
    "changed-loop-dim": (lambda model: setattr(model.recurrent, "loop_dim", 2), r"loop_dim is 2, and 6 by the config"),
    "frozen-expert": (
        _frozen_expert,
        r"requires_grad of .*0.gate.weight is True and .*3.up.weight False",
    ),
    "cast-expert": (_cast_expert, r"dtype of .*routed_experts.3.down.weight torch.bfloat16; choose one with dtype="),
    "shared-expert-weight": (_shared_expert_weight, r"routed_experts.3.up.weight and .* share their memory"),
    "tensor-subclass": (_subclass_tensor, r"model.norm.weight is a _Tensor|model.norm.weight is a Parameter"),
    "meta": (lambda model: model.to("meta"), r"is on the meta device"),
    "changed-table": (_changed_table, r"model.freqs_cis_mla was changed"),
    "longer-table": (_longer_table, r"model.freqs_cis_mla is \(50, 3\), and \(40, 3\) by the config"),
}


@pytest.mark.parametrize("copied", [False, True], ids=["move", "copy"])
@pytest.mark.parametrize(("change", "message"), CASES.values(), ids=CASES)
def test_a_changed_source_is_refused(change: Callable[[nn.Module], object], message: str, copied: bool) -> None:
    theirs, _ = pair()
    change(theirs)
    before = {} if any(value.is_meta for value in theirs.parameters()) else weights(theirs)
    with pytest.raises(ValueError, match=message):
        openmythos.accelerate(theirs, copy=copied)
    after = dict(theirs.state_dict())
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_message_says_what_to_do() -> None:
    theirs, _ = pair()
    _replace_forward(theirs)
    with pytest.raises(ValueError, match=r"silently change the results; undo it, accelerate, and apply it"):
        openmythos.accelerate(theirs)


def test_putting_the_original_back_is_accepted() -> None:
    theirs, _ = pair()
    original = theirs.recurrent.block.attn.forward
    theirs.recurrent.block.attn.forward = lambda *args: None
    theirs.recurrent.block.attn.forward = original
    handle = theirs.norm.register_forward_hook(lambda *args: None)
    handle.remove()
    with torch.no_grad():
        expected = theirs(tokens(1, 5))
        assert torch.allclose(openmythos.accelerate(theirs)(tokens(1, 5)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("cls", "name"),
    [(upstream.MLAttention, "forward"), (upstream.LTIInjection, "get_A"), (nn.Linear, "forward")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_method_replaced_for_the_whole_class_is_refused(
    monkeypatch: pytest.MonkeyPatch, cls: type[nn.Module], name: str
) -> None:
    theirs, _ = pair()
    original = getattr(cls, name)
    monkeypatch.setattr(cls, name, lambda self, *args, **kwargs: original(self, *args, **kwargs))
    with pytest.raises(ValueError, match=rf"has a class whose {name} was replaced"):
        openmythos.accelerate(theirs)
    monkeypatch.undo()
    assert openmythos.accelerate(theirs).cfg.dim == 48


def test_a_subclass_of_the_model_is_refused() -> None:
    theirs, _ = pair()
    model = _Model(theirs.cfg)
    with pytest.raises(ValueError, match=r"model is a .*_Model, expected OpenMythos"):
        openmythos.accelerate(model)


def test_a_compiled_wrapper_is_refused() -> None:
    theirs, _ = pair()
    with pytest.raises(ValueError, match=r"OptimizedModule, expected OpenMythos"):
        openmythos.accelerate(torch.compile(theirs))


@pytest.mark.parametrize("model", [{}, None, nn.Linear(2, 2)], ids=["dict", "None", "Linear"])
def test_other_objects_are_refused(model: object) -> None:
    with pytest.raises(TypeError, match=r"expected an open_mythos\.OpenMythos"):
        openmythos.accelerate(model)


def test_dtype_and_device_are_checked() -> None:
    theirs, _ = pair()
    with pytest.raises(ValueError, match=r"dtype=torch\.int8"):
        openmythos.accelerate(theirs, torch.int8)
    with pytest.raises(ValueError, match="device='meta'"):
        openmythos.accelerate(theirs, device="meta")
    assert theirs(tokens(1, 3)).shape == (1, 3, 101)
