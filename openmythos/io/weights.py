"""Names and shapes of a model's weights, and building a model from any source of named tensors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from openmythos.config import MythosConfig
from openmythos.io.progress import bytes_bar
from openmythos.memory import forget_pages, gather_huge_pages, prefer_huge_pages
from openmythos.nn import OpenMythos

TABLES = ("freqs_cis", "freqs_cis_mla")
HEAD, EMBED, LORA_SCALE = "head.weight", "embed.weight", "recurrent.lora.scale.weight"
MOE = "recurrent.block.ffn."
STACKS = {f"{MOE}gate_up": ("gate", "up"), f"{MOE}down": ("down",)}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_SHOWN = 8
_VALUES_ONLY = {nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, torch.Tensor.mul, torch.Tensor.__mul__}


class Info(NamedTuple):
    """Shape and dtype of one stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Source(NamedTuple):
    """Named tensors to build a model from. `where` names it in errors; with `mapped`, reads are views of a file."""

    where: str
    info: dict[str, Info]
    read: Callable[[str], torch.Tensor]
    mapped: bool = False


def check_target(dtype: torch.dtype | None, device: torch.device | str | None) -> torch.device | None:
    """The device that `device` names, or None.

    Raises:
        ValueError: when a model cannot have this dtype or device.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype={dtype}: allowed are {', '.join(str(each) for each in DTYPES)}")
    if device is None:
        return None
    device = torch.device(device)
    if device.type == "meta":
        raise ValueError("device='meta': weights need a device with memory")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r}: torch.cuda.is_available() is False on this machine")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


class _ShapesOnly(TorchFunctionMode):
    """Skips functions that only set values: on the meta device they only import torch's compiler (70 MB, 2 s)."""

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> torch.Tensor:
        kwargs = kwargs or {}
        if func in _VALUES_ONLY:
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if func is torch.randn else func)(*args, **kwargs)


def meta_model(config: MythosConfig) -> OpenMythos:
    """A model on the meta device: all names and shapes, no memory, no random numbers drawn."""
    with torch.device("meta"), _ShapesOnly():
        return OpenMythos(config)


def expert_key(expert: int, part: str) -> str:
    """Upstream's state-dict key of one matrix of a routed expert."""
    return f"{MOE}routed_experts.{expert}.{part}.weight"


def matrix_of(stack: torch.Tensor, expert: int, part: str) -> torch.Tensor:
    """One expert's matrix in its stack, a view."""
    return stack[expert] if part == "down" else stack[expert, ("gate", "up").index(part)]


def expected_shapes(model: OpenMythos) -> dict[str, tuple[int, ...]]:
    """{upstream's state-dict key: shape} without the rotary tables and with the tied head once."""
    skip = (*TABLES, HEAD)
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in skip}


def set_tensor(model: nn.Module, name: str, value: torch.Tensor, requires_grad: bool = True) -> None:
    """Make `value` the parameter or buffer of that name, in place of the old one."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if leaf in owner._buffers:
        owner._buffers[leaf] = value
    else:
        owner._parameters[leaf] = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad)


def complete(model: OpenMythos, tied: bool) -> OpenMythos:
    """Finish a model after its weights are set: the tied head, the rotary table on their device, huge pages."""
    if tied:
        model.head.weight = model.embed.weight
    model.recurrent.lora.scale.num_embeddings = model.recurrent.lora.scale.weight.shape[0]
    model.rope = model._rope_table(model.embed.weight.device)
    gather_huge_pages(model.parameters())
    return model


def abbreviate(names: Iterable[str]) -> str:
    """The first few names, and the number of remaining ones."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def fit_rows(table: torch.Tensor, rows: int) -> torch.Tensor:
    """A table with one row per loop, resized to `rows` loops: extra rows are dropped, missing ones repeat the last."""
    if table.shape[0] == rows:
        return table
    return table[torch.arange(rows, device=table.device).clamp(max=table.shape[0] - 1)]


def _fits(name: str, have: tuple[int, ...], want: tuple[int, ...]) -> bool:
    if name == LORA_SCALE:
        return len(have) == 2 and have[0] > 0 and have[1] == want[1]
    return have == want


def match(wanted: dict[str, tuple[int, ...]], source: Source, strict: bool) -> list[str]:
    """The wanted names that the source lacks; with `strict` that is an error.

    Raises:
        ValueError: one message with all missing, unexpected and mis-shaped names.
    """
    have = {name: info for name, info in source.info.items() if name not in (*TABLES, HEAD)}
    missing = [name for name in wanted if name not in have]
    unexpected = [name for name in have if name not in wanted]
    wrong = [
        f"{name} {have[name].shape} instead of {want}"
        for name, want in wanted.items()
        if name in have and not _fits(name, have[name].shape, want)
    ]
    other = [f"{name} ({info.dtype})" for name, info in have.items() if name in wanted and info.dtype not in DTYPES]
    problems = [("mis-shaped", wrong), ("of an unsupported dtype", other)]
    if strict:
        problems = [("missing", missing), ("unexpected", unexpected), *problems]
    found = [f"{len(names)} {what}: {abbreviate(names)}" for what, names in problems if names]
    if found:
        raise ValueError(f"{source.where} does not fit the config: {'; '.join(found)}")
    return missing


def build(
    config: MythosConfig,
    source: Source,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    strict: bool = True,
    progress: bool = True,
) -> OpenMythos:
    """A model filled tensor by tensor, stacks expert by expert, so that memory peaks at the model and one tensor.

    dtype None keeps each tensor's own; device None is the CPU. Without `strict`, weights that the source lacks keep a
    new model's initial values, and tensors that the model lacks are ignored.

    Raises:
        ValueError: when names, shapes or dtypes do not fit, before anything is allocated.
    """
    device = device or torch.device("cpu")
    source = _with_embedding(source)
    model = meta_model(config)
    wanted = _in_form_of(expected_shapes(model), source)
    missing = match(wanted, source, strict)
    kinds = {stack: _stack_dtype(stack, source, dtype) for stack in STACKS}
    if missing:
        stored = source.info[EMBED].dtype if EMBED in source.info else None
        model = OpenMythos(config).to(device=device, dtype=dtype or stored)
    present = [name for name in wanted if name in source.info]
    total = sum(source.info[name].nbytes for name in present)
    with torch.no_grad(), bytes_bar("loading", total, progress) as advance:
        take = functools.partial(_read_and_use, source, advance)
        for stack, parts in STACKS.items():
            if stack not in wanted:
                _fill_stack(model, stack, parts, source, take, kinds[stack], device)
        for name in present:
            if name.startswith(f"{MOE}routed_experts."):
                continue
            rows = config.max_loop_iters if name == LORA_SCALE else None
            set_tensor(model, name, take(name, lambda value, rows=rows: _copy_of(value, rows, dtype, device)))
        tied = _is_tied(source)
        if not tied:
            set_tensor(model, HEAD, take(HEAD, lambda value: _copy_of(value, None, dtype, device)))
    return complete(model, tied)


def _with_embedding(source: Source) -> Source:
    """The source with the tied matrix under the embedding's name, even if it only has the head's."""
    if EMBED in source.info or HEAD not in source.info:
        return source
    info = {EMBED if name == HEAD else name: value for name, value in source.info.items()}
    return source._replace(info=info, read=lambda name: source.read(HEAD if name == EMBED else name))


def _in_form_of(shapes: dict[str, tuple[int, ...]], source: Source) -> dict[str, tuple[int, ...]]:
    """The shapes under per-expert names, or under the stacks' names if the source has those."""
    if not any(stack in source.info for stack in STACKS):
        return shapes
    gate, down = shapes[expert_key(0, "gate")], shapes[expert_key(0, "down")]
    kept = {name: shape for name, shape in shapes.items() if not name.startswith(f"{MOE}routed_experts.")}
    experts = (len(shapes) - len(kept)) // 3
    return {**kept, f"{MOE}gate_up": (experts, 2, *gate), f"{MOE}down": (experts, *down)}


def _stack_dtype(stack: str, source: Source, dtype: torch.dtype | None) -> torch.dtype | None:
    """The dtype of a stack: `dtype`, or the one that all its matrices have."""
    if dtype is not None:
        return dtype
    keys = [
        name
        for name in source.info
        if name.startswith(f"{MOE}routed_experts.") and name.split(".")[-2] in STACKS[stack]
    ]
    found = {source.info[name].dtype for name in keys}
    if len(found) > 1:
        odd = next(name for name in keys if source.info[name].dtype != source.info[keys[0]].dtype)
        raise ValueError(
            f"{source.where}: {keys[0]} is {source.info[keys[0]].dtype} and {odd} is {source.info[odd].dtype}; "
            "experts share one dtype: choose it with dtype="
        )
    return found.pop() if found else None


def _copy_of(value: torch.Tensor, rows: int | None, dtype: torch.dtype | None, device: torch.device) -> torch.Tensor:
    value = value if rows is None else fit_rows(value, rows)
    target = prefer_huge_pages(torch.empty(value.shape, dtype=dtype or value.dtype, device=device))
    return target.copy_(value)


def _read_and_use(
    source: Source, advance: Callable[[int], None], name: str, use: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    value = source.read(name)
    result = use(value)
    if source.mapped:
        forget_pages(value)
    advance(value.nbytes)
    return result


def _fill_stack(
    model: OpenMythos,
    name: str,
    parts: tuple[str, ...],
    source: Source,
    take: Callable[..., torch.Tensor],
    dtype: torch.dtype | None,
    device: torch.device,
) -> None:
    stack = model.get_parameter(name)
    if stack.is_meta:
        stack = prefer_huge_pages(torch.empty(stack.shape, dtype=dtype, device=device))
    for expert in range(stack.shape[0]):
        for part in parts:
            key = expert_key(expert, part)
            if key in source.info:
                take(key, matrix_of(stack, expert, part).copy_)
    set_tensor(model, name, stack)


def _is_tied(source: Source) -> bool:
    if HEAD not in source.info:
        return True
    head, embed = source.read(HEAD), source.read(EMBED)
    if head.shape != embed.shape or head.dtype != embed.dtype:
        raise ValueError(f"{source.where}: {HEAD} and {EMBED} differ in shape or dtype")
    if head.data_ptr() == embed.data_ptr():
        return True
    pairs = zip(head.split(1024), embed.split(1024), strict=True)
    return all(torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)) for a, b in pairs)
