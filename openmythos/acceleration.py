"""accelerate(model): turns an upstream model into ours by moving its weights, with almost no extra memory."""

from __future__ import annotations

import copy as copying
import warnings
from typing import NamedTuple

import torch
from torch import nn

from openmythos.config import MythosConfig
from openmythos.io.progress import bytes_bar
from openmythos.io.weights import (
    STACKS,
    check_target,
    complete,
    expert_key,
    matrix_of,
    meta_model,
    set_tensor,
)
from openmythos.memory import prefer_huge_pages, release_free_memory
from openmythos.nn import OpenMythos
from openmythos.upstream_check import CARRIED, Held, check_source

_MOVED = (
    "this model is empty: openmythos.accelerate moved its weights into the model that it returned; use that one, or "
    "call accelerate(model, copy=True), which keeps the source whole"
)
# Freed heap memory is returned to the operating system each time this many bytes have accumulated.
_TRIM_BYTES = 64 * 2**20


class MovedError(RuntimeError, AttributeError):
    """A module was used whose weights `accelerate` has moved."""


class Moved(nn.Module):
    """A module whose weights `accelerate` has moved: any use raises MovedError."""

    def _refuse(self, *args: object, **kwargs: object) -> None:
        raise MovedError(_MOVED)

    __call__ = forward = state_dict = load_state_dict = parameters = named_parameters = _refuse
    buffers = named_buffers = _apply = children = named_children = __deepcopy__ = __reduce_ex__ = _refuse

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)
        raise MovedError(_MOVED)

    def __repr__(self) -> str:
        return "Moved()"


def accelerate(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    *,
    copy: bool = False,
    progress: bool = True,
) -> OpenMythos:
    """An openmythos.OpenMythos with the weights of `model`, an open_mythos.OpenMythos.

    The weights are moved: tensors that keep dtype and device are reused, the others converted and freed one at a
    time, and the routed experts go one by one into stacked storage (on the same GPU by way of host memory), so
    that memory peaks at the model and its largest tensor. The source is then empty, and using it raises MovedError.
    copy=True leaves the source as it is and shares no storage with it.

    Config, requires_grad, training mode, a tied head and changed eps, topk and dropout are kept; gradients are not.
    dtype and device default to the source's. One of our own models is cast and moved in place (copy=True: a copy).

    An error restores the source. If Ctrl-C interrupts a narrowing cast, weights already cast are restored with rounded
    values, and a warning is issued.

    Raises:
        TypeError: when `model` is not a module.
        ValueError: before anything is moved, naming the module or tensor, when the source was modified in a way
            that would be lost (a hook, a replaced method, another class), when its weights do not fit its config,
            or when the experts differ in requires_grad, dtype or device.
    """
    device = check_target(dtype, device)
    if isinstance(model, OpenMythos):
        model = copying.deepcopy(model) if copy else model
        return model.to(device=device, dtype=dtype)
    if isinstance(model, Moved):
        raise MovedError(_MOVED)
    if not isinstance(model, nn.Module) or not hasattr(model, "cfg"):
        raise TypeError(f"model is a {type(model).__name__}: expected an open_mythos.OpenMythos")
    config = MythosConfig.from_any(model.cfg)
    target = meta_model(config)
    held = check_source(model, target, config, dtype, device)
    with torch.no_grad():
        _transfer(target, held, dtype, device, copy, progress)
    _carry(model, target)
    if not copy:
        _empty(model)
    return target


class _Emptied(NamedTuple):
    """A parameter or buffer that was emptied, and the copy of its values."""

    tensor: torch.Tensor
    value: torch.Tensor


class _Mover:
    """Copies tensors and empties their sources; `restore` undoes that."""

    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self.emptied: list[_Emptied] = []
        self.freed = 0

    def move(self, tensor: torch.Tensor, place: torch.Tensor) -> None:
        """Copy `tensor` into `place` and free its memory."""
        place.copy_(tensor)
        if self.keep:
            return
        size, on_cpu = tensor.nbytes, tensor.device.type == "cpu"
        self.emptied.append(_Emptied(tensor, place))
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        self.freed += size if on_cpu else 0
        if self.freed >= _TRIM_BYTES:
            release_free_memory()
            self.freed = 0

    def restore(self) -> None:
        """Undo every `move`, last first."""
        rounded = 0
        while self.emptied:
            tensor, value = self.emptied.pop()
            rounded += value.dtype.itemsize < tensor.dtype.itemsize
            tensor.data = value.to(device=tensor.device, dtype=tensor.dtype)
        if rounded:
            warnings.warn(
                f"accelerate was interrupted in a narrowing cast: {rounded} weights of the source are rounded",
                stacklevel=4,
            )


def _transfer(
    target: OpenMythos,
    held: Held,
    dtype: torch.dtype | None,
    device: torch.device | None,
    copy: bool,
    progress: bool,
) -> None:
    mover = _Mover(keep=copy)
    try:
        places = _allocate(target, held, dtype, device, copy)
        total = sum(tensor.nbytes for tensor in held.tensors.values())
        with bytes_bar("accelerating", total, progress) as advance:
            for name, parts in STACKS.items():
                stack = places[name]
                for expert in range(stack.shape[0]):
                    for part in parts:
                        tensor = held.tensors[expert_key(expert, part)]
                        advance(tensor.nbytes)
                        mover.move(tensor, matrix_of(stack, expert, part))
                first = held.tensors[expert_key(0, parts[0])]
                places[name] = _to_device(stack, device or first.device)
            for name, tensor in held.others.items():
                advance(tensor.nbytes)
                if not copy and _unchanged(tensor, dtype, device):
                    places[name] = tensor.data
                    continue
                if name not in places:
                    places[name] = torch.empty_like(tensor, dtype=dtype, device=device)
                mover.move(tensor, places[name])
        for name, value in places.items():
            grad_of = expert_key(0, STACKS[name][0]) if name in STACKS else name
            set_tensor(target, name, value, held.tensors[grad_of].requires_grad)
        complete(target, held.tied)
    except BaseException:
        # Free the new tensors before restoring the old: a GPU may not hold both.
        places = stack = None
        mover.restore()
        raise
    release_free_memory()


def _allocate(
    target: OpenMythos, held: Held, dtype: torch.dtype | None, device: torch.device | None, copy: bool
) -> dict[str, torch.Tensor]:
    """{name: the tensor that its weights move to}, allocated first, so that running out of memory moves nothing.

    For a source that stays on its GPU the stacks are in host memory, and other tensors are allocated one by one when
    they move, since the GPU may not hold two models.
    """
    places: dict[str, torch.Tensor] = {}
    for name, parts in STACKS.items():
        first = held.tensors[expert_key(0, parts[0])]
        staged = not copy and first.is_cuda and device in (None, first.device)
        where = torch.device("cpu") if staged else device or first.device
        shape = target.get_parameter(name).shape
        places[name] = prefer_huge_pages(torch.empty(shape, dtype=dtype or first.dtype, device=where))
    for name, tensor in held.others.items():
        crowded = tensor.is_cuda and device in (None, tensor.device)
        if copy or not (crowded or _unchanged(tensor, dtype, device)):
            places[name] = prefer_huge_pages(torch.empty_like(tensor, dtype=dtype, device=device))
    return places


def _unchanged(tensor: torch.Tensor, dtype: torch.dtype | None, device: torch.device | None) -> bool:
    return dtype in (None, tensor.dtype) and device in (None, tensor.device)


def _to_device(stack: torch.Tensor, device: torch.device) -> torch.Tensor:
    if stack.device.type == device.type:
        return stack
    torch.cuda.empty_cache()
    return stack.to(device)


def _carry(source: nn.Module, target: OpenMythos) -> None:
    """Copy training mode and plain settings, module by module."""
    theirs = dict(source.named_modules())
    for path, module in target.named_modules():
        module.training = theirs[path].training
        for name in CARRIED:
            if name in vars(module):
                setattr(module, name, vars(theirs[path])[name])


def _empty(source: nn.Module) -> None:
    """Turn every module of the source into `Moved`."""
    for module in list(source.modules()):
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.grad = None
        for registry in (module._parameters, module._buffers, module._modules):
            registry.clear()
        module.__class__ = Moved
