"""Checks an upstream model before `accelerate` moves its weights, so that no modification is lost."""

from __future__ import annotations

import inspect
import os
from typing import NamedTuple

import torch
from torch import nn

from openmythos.config import MythosConfig
from openmythos.io.weights import (
    EMBED,
    HEAD,
    LORA_SCALE,
    MOE,
    STACKS,
    TABLES,
    Info,
    Source,
    expected_shapes,
    expert_key,
    match,
)
from openmythos.nn import OpenMythos
from openmythos.nn.rope import precompute_rope_freqs

# Settings that users often change on a finished model; our modules have them under the same names.
CARRIED = ("eps", "p", "dropout_p", "topk")
_TORCH = {cls.__name__: cls for cls in (nn.Linear, nn.Embedding, nn.Dropout, nn.ModuleList)}
_TORCH_FORWARD = {cls: cls.forward for cls in _TORCH.values()}
_SETTINGS = (bool, int, float, str, type(None))
_TORCH_FOLDER = os.path.dirname(torch.__file__)
# Tables are computed in float32; angles at late positions differ in rounding between machines.
_TABLE_ERROR = 1e-3
_TABLE_ROWS = 4096


class Held(NamedTuple):
    """The source's parameters and buffers under state-dict names; `others` are those outside the routed experts."""

    tensors: dict[str, torch.Tensor]
    others: dict[str, torch.Tensor]
    tied: bool


def check_source(
    source: nn.Module,
    target: OpenMythos,
    config: MythosConfig,
    dtype: torch.dtype | None,
    device: torch.device | None,
) -> Held:
    """The source's tensors, after checking that `target` (on the meta device) can hold them without loss.

    Raises:
        ValueError: naming the module or tensor that prevents it.
    """
    _check_modules(source, target)
    found = {}
    for path, module in source.named_modules():
        for registry in (module._parameters, module._buffers):
            for leaf, tensor in registry.items():
                if tensor is not None:
                    found[f"{path}.{leaf}" if path else leaf] = tensor
    _check_tensors(found)
    info = {name: Info(tuple(tensor.shape), tensor.dtype) for name, tensor in found.items()}
    match(expected_shapes(target), Source("model", info, found.__getitem__), strict=True)
    _check_settings(source, target, config)
    _check_tables(found, config)
    tensors = {name: tensor for name, tensor in found.items() if name not in TABLES}
    tied = HEAD not in tensors or tensors[HEAD] is tensors[EMBED]
    if tied:
        tensors.pop(HEAD, None)
    _check_shared(tensors)
    _check_agreement(tensors, config.n_experts, dtype, device)
    others = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{MOE}routed_experts.")}
    return Held(tensors, others, tied)


def _check_modules(source: nn.Module, target: OpenMythos) -> None:
    expected = {path: type(module).__name__ for path, module in target.named_modules()}
    experts = f"{MOE}routed_experts"
    expected[experts] = "ModuleList"
    for expert in range(target.recurrent.block.ffn.n_experts):
        expected[f"{experts}.{expert}"] = "Expert"
        expected |= {f"{experts}.{expert}.{part}": "Linear" for part in ("gate", "up", "down")}
    for path, module in source.named_modules(remove_duplicate=False):
        reason = _modification(module, expected.get(path), type(source).__module__)
        if reason is not None:
            raise ValueError(
                f"{_named(path)} {reason}: taking over only the weights would silently change the results; undo it, "
                "accelerate, and apply it to the accelerated model"
            )
    present = dict(source.named_modules(remove_duplicate=False))
    absent = [path for path in expected if path not in present]
    if absent:
        raise ValueError(f"{_named(absent[0])} is missing, though the config has it ({len(absent)} modules in all)")


def _named(path: str) -> str:
    return f"model.{path}" if path else "model"


def _modification(module: nn.Module, expected: str | None, package: str) -> str | None:
    """What was modified about the module besides its weights, or None."""
    cls = type(module)
    where = f"{cls.__module__}.{cls.__qualname__}"
    if expected is None:
        return f"is a {where} that is not in the config"
    own = cls is _TORCH[expected] if expected in _TORCH else (cls.__name__, cls.__module__) == (expected, package)
    if not own:
        return f"is a {where}, expected {expected}"
    method = _replaced_in_class(cls)
    if method is not None:
        return f"has a class whose {method} was replaced"
    for name, value in vars(module).items():
        if name.endswith("_hooks") and value:
            return f"has a hook ({name.strip('_')})"
        original = getattr(cls, name, None)
        if callable(original) and value is not original and getattr(value, "__func__", None) is not original:
            return f"has a replaced {name}"
    return None


def _replaced_in_class(cls: type[nn.Module]) -> str | None:
    """The name of a method that is defined in another file than its class. Decorators of torch are unwrapped."""
    if cls in _TORCH_FORWARD:
        return None if cls.forward is _TORCH_FORWARD[cls] else "forward"
    home = cls.__init__.__code__.co_filename
    for name, value in vars(cls).items():
        function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        while hasattr(function, "__wrapped__") and _file(function).startswith(_TORCH_FOLDER):
            function = function.__wrapped__
        if inspect.isfunction(function) and _file(function) != home:
            return name
        if name == "forward" and not inspect.isfunction(function):
            return name
    return None


def _file(function: object) -> str:
    code = getattr(function, "__code__", None)
    return code.co_filename if code is not None else ""


def _check_settings(source: nn.Module, target: OpenMythos, config: MythosConfig) -> None:
    """Plain attributes of the modules must be the config's, unless `accelerate` carries them over."""
    theirs = dict(source.named_modules())
    for path, module in target.named_modules():
        for name, value in vars(module).items():
            other = vars(theirs[path]).get(name, value)
            if not isinstance(value, _SETTINGS) or name.startswith("_") or name in (*CARRIED, "training"):
                continue
            if other != value and not (name == "num_embeddings" and path == LORA_SCALE.removesuffix(".weight")):
                raise ValueError(f"{_named(path)}.{name} is {other!r}, and {value!r} by the config")
    loop_config = MythosConfig.from_any(source.recurrent.cfg)
    if loop_config != config:
        fields = config.to_dict()
        odd = [f"{name}={value!r}" for name, value in loop_config.to_dict().items() if value != fields[name]]
        raise ValueError(f"model.recurrent.cfg differs from model.cfg: it has {', '.join(odd)}")


def _check_tensors(found: dict[str, torch.Tensor]) -> None:
    for name, tensor in found.items():
        if type(tensor) not in (torch.Tensor, nn.Parameter) or type(tensor.data) is not torch.Tensor:
            raise ValueError(f"{_named(name)} is a {type(tensor).__name__}: only plain tensors can be taken over")
        if tensor.is_meta:
            raise ValueError(f"{_named(name)} is on the meta device: it has no values to take over")
        if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                f"{_named(name)} has a hook: remove it, accelerate, and apply it to the accelerated model"
            )


def _check_tables(found: dict[str, torch.Tensor], config: MythosConfig) -> None:
    """The rotary table in use must be the config's. A table of real numbers was corrupted by a cast and is ignored."""
    mla = config.attn_type == "mla"
    name, dim = (TABLES[1], config.qk_rope_head_dim) if mla else (TABLES[0], config.head_dim)
    table = found.get(name)
    if table is None or not table.is_complex():
        return
    want = precompute_rope_freqs(dim, config.max_seq_len, config.rope_theta)
    if table.shape != want.shape:
        raise ValueError(f"model.{name} is {tuple(table.shape)}, and {tuple(want.shape)} by the config")
    for rows, expected in zip(table.split(_TABLE_ROWS), want.split(_TABLE_ROWS), strict=True):
        if not (rows.to("cpu", torch.complex64) - expected).abs().max() <= _TABLE_ERROR:
            raise ValueError(f"model.{name} was changed: it is not the table of rope_theta={config.rope_theta}")


def _check_shared(tensors: dict[str, torch.Tensor]) -> None:
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        if tensor.numel() and first.setdefault(tensor.data_ptr(), name) != name:
            raise ValueError(
                f"{_named(name)} and {_named(first[tensor.data_ptr()])} share their memory: only head and embed may; "
                "give each its own tensor"
            )


def _check_agreement(
    tensors: dict[str, torch.Tensor], experts: int, dtype: torch.dtype | None, device: torch.device | None
) -> None:
    """Matrices that become one parameter must agree; without device=, all weights must be on one device."""
    choices = {"requires_grad": None, "dtype": dtype}
    for parts in STACKS.values():
        keys = [expert_key(expert, part) for expert in range(experts) for part in parts]
        for what, choice in choices.items():
            odd = [key for key in keys if getattr(tensors[key], what) != getattr(tensors[keys[0]], what)]
            if odd and choice is None:
                values = f"{getattr(tensors[keys[0]], what)} and {_named(odd[0])} {getattr(tensors[odd[0]], what)}"
                hint = "; choose one with dtype=" if what == "dtype" else ""
                raise ValueError(f"experts become one parameter: {what} of {_named(keys[0])} is {values}{hint}")
    anchor = next(iter(tensors))
    for name, tensor in tensors.items():
        if device is None and tensor.device != tensors[anchor].device:
            raise ValueError(
                f"{_named(anchor)} is on {tensors[anchor].device} and {_named(name)} on {tensor.device}: "
                "choose one with device="
            )
