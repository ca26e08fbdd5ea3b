"""Whether a module is unmodified, so that a fused path may compute it.

A replaced `forward`, a hook, a subclass or a parametrisation modifies a module. It is then called as a module, and
only that piece leaves the fused path. Restoring the original restores the fused path.

The whole model is checked once per forward. If it is unmodified, all layers run fused without further checks;
otherwise each piece is checked when it is used.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as nn_module

_original_forward: dict[type[nn.Module], object] = {
    cls: cls.forward for cls in (nn.Linear, nn.Embedding, nn.Dropout, nn.ModuleList)
}


def fusable(cls: type[nn.Module]) -> type[nn.Module]:
    """Class decorator: record the class's forward as the one that fused paths compute."""
    _original_forward[cls] = cls.forward
    return cls


def hooks_on_all_modules() -> bool:
    """Whether a forward hook is registered on all modules."""
    return bool(nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks)


def why_modified_itself(module: nn.Module) -> str | None:
    """What was modified about the module itself, its children aside, or None."""
    cls, state = type(module), module.__dict__
    original = _original_forward.get(cls)
    if original is None:
        return f"is a {cls.__name__}"
    if cls.forward is not original:
        return f"{cls.__name__}.forward was replaced"
    own = state.get("forward")
    if own is not None and getattr(own, "__func__", None) is not original:
        return "its forward was replaced"
    if state["_forward_hooks"] or state["_forward_pre_hooks"]:
        return "has a hook"
    if hooks_on_all_modules():
        return "is seen by a hook on all modules"
    if state["_backward_hooks"] or state["_backward_pre_hooks"]:
        return "has a backward hook"
    return None


def why_modified(module: nn.Module) -> str | None:
    """What was modified about the module or its children, or None."""
    reason = why_modified_itself(module)
    if reason is None:
        for name, child in module._modules.items():
            inner = None if child is None else why_modified(child)
            if inner is not None:
                return f"{name} {inner}"
        experts = module.__dict__.get("_experts")
        for index, inner in experts.modified().items() if experts is not None else ():
            return f"routed_experts.{index} {inner}"
    return reason


def is_unmodified(module: nn.Module) -> bool:
    """Whether a fused path may compute this module, its children included."""
    return why_modified(module) is None


def children_are_unmodified(module: nn.Module) -> bool:
    """`is_unmodified` of every child. Enough inside `module.forward`: hooks of the module itself run around it."""
    return all(child is None or why_modified(child) is None for child in module._modules.values())


def is_exactly(module: nn.Module, *classes: type[nn.Module]) -> bool:
    """Whether `module` is one of `classes` and is itself unmodified, its children aside."""
    return type(module) in classes and why_modified_itself(module) is None


def explain_module(model: nn.Module) -> dict[str, str]:
    """{module path: reason} of every piece of `model` that currently runs as a module instead of fused."""
    reasons = {}
    for name, module in model.named_modules():
        reason = why_modified_itself(module)
        if reason is None and isinstance(module, nn.Dropout) and module.p > 0 and module.training:
            reason = f"dropout={module.p} while training: attention takes the reference path"
        if reason is not None and name:
            reasons[name] = reason
        experts = module.__dict__.get("_experts")
        if experts is not None:
            prefix = f"{name}.routed_experts" if name else "routed_experts"
            reasons |= {f"{prefix}.{index}": reason for index, reason in experts.modified().items()}
    return reasons
