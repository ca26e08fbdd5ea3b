"""Tells whether a module still is what its class says, so that a fused path may compute its piece.

A replaced `forward`, a hook, a subclass or a parametrisation makes a module its owner's own: then the
module is called, and the fused path steps aside for that piece. Putting the original method back brings
the fused path back.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as nn_module

_original_forward: dict[type[nn.Module], object] = {
    cls: cls.forward for cls in (nn.Linear, nn.Embedding, nn.Dropout, nn.ModuleList)
}


def fusable(cls: type[nn.Module]) -> type[nn.Module]:
    """Class decorator: remember the class's own forward as the one that fused paths stand in for."""
    _original_forward[cls] = cls.forward
    return cls


def hooks_on_all_modules() -> bool:
    """Whether somebody registered a forward hook on every module."""
    return bool(nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks)


def _changed(module: nn.Module) -> str | None:
    """What was changed about the module itself, its children aside."""
    cls = type(module)
    if cls not in _original_forward:
        return f"is a {cls.__name__}"
    if cls.forward is not _original_forward[cls]:
        return f"{cls.__name__}.forward was replaced"
    state = module.__dict__
    own = state.get("forward")
    if own is not None and getattr(own, "__func__", None) is not cls.forward:
        return "its forward was replaced"
    if state["_forward_hooks"] or state["_forward_pre_hooks"]:
        return "has a hook"
    if hooks_on_all_modules():
        return "is seen by a hook on all modules"
    if state["_backward_hooks"] or state["_backward_pre_hooks"]:
        return "has a backward hook"
    return None


def why_not(module: nn.Module) -> str | None:
    """None for a pristine module, its children included, else what was changed."""
    reason = _changed(module)
    if reason is None:
        for name, child in module._modules.items():
            inner = None if child is None else why_not(child)
            if inner is not None:
                return f"{name} {inner}"
    return reason


def unchanged(module: nn.Module, *classes: type[nn.Module]) -> bool:
    """Whether `module` itself, its children aside, still is one of `classes`."""
    return type(module) in classes and _changed(module) is None


def pristine(module: nn.Module) -> bool:
    """Whether a fused path may compute this module's piece."""
    return why_not(module) is None


def explain_module(model: nn.Module) -> dict[str, str]:
    """{module path: reason} of every piece of `model` that fused paths leave to the module itself now."""
    reasons = {}
    for name, module in model.named_modules():
        reason = _changed(module)
        if reason is None and isinstance(module, nn.Dropout) and module.p > 0 and module.training:
            reason = f"dropout={module.p} while training: attention takes the reference path"
        if reason is not None and name:
            reasons[name] = reason
        experts = getattr(module, "routed_experts", None)
        if hasattr(experts, "changed"):
            prefix = f"{name}.routed_experts" if name else "routed_experts"
            reasons |= {f"{prefix}.{index}": reason for index, reason in experts.changed().items()}
    return reasons
