"""The SwiGLU expert, and upstream's list of routed experts as live views of the stacked weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from openmythos.nn import pieces
from openmythos.nn.fusion import fusable, hooks_on_all_modules, why_modified
from openmythos.ops import repeated


@fusable
class Expert(nn.Module):
    """down(silu(gate x) * up x) (Shazeer, arXiv 2002.05202). (..., dim) -> (..., dim)."""

    def __init__(self, dim: int, expert_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, expert_dim, bias=False)
        self.up = nn.Linear(dim, expert_dim, bias=False)
        self.down = nn.Linear(expert_dim, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function()(x)

    def function(self, trust: pieces.Trust = pieces.UNCHECKED) -> pieces.Function:
        """`forward` with the weights looked up."""
        if not _projections_are_plain(self, trust):
            return lambda x: self._call_projections(pieces.to_weight_dtype(x, self.gate))
        gate = self.gate.weight
        run = repeated.swiglu(gate, self.up.weight, self.down.weight, trust.series)
        return lambda x: run(pieces.cast(x, gate.dtype))

    def _call_projections(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def _projections_are_plain(expert: Expert, trust: pieces.Trust) -> bool:
    parts = (expert.gate, expert.up, expert.down)
    return all(isinstance(part, nn.Linear) and part.bias is None and trust.allows(part) for part in parts)


def is_plain(expert: nn.Module, trust: pieces.Trust) -> bool:
    """Whether `expert` is an unmodified Expert without biases, so that its weights define what it computes."""
    return type(expert) is Expert and trust.allows(expert) and _projections_are_plain(expert, trust)


class StackOwner(Protocol):
    """What a view needs from the module that holds the stacked weights."""

    n_experts: int

    def expert_weight(self, expert: int, name: str) -> torch.Tensor:
        """The matrix of one expert."""


class _Slice(nn.Linear):
    """A Linear whose weight is one matrix of the stack, looked up at each use."""

    def __init__(self, owner: StackOwner, expert: int, name: str) -> None:
        nn.Module.__init__(self)
        self.__dict__["_owner"] = owner
        self.expert, self.name = expert, name
        self.out_features, self.in_features = self.weight.shape
        self.bias = None

    @property
    def weight(self) -> torch.Tensor:
        return self._owner.expert_weight(self.expert, self.name)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.Tensor]]:
        yield (f"{prefix}.weight" if prefix else "weight"), self.weight


fusable(_Slice)


@fusable
class ExpertView(Expert):
    """Routed expert i: an `Expert` whose weights are views of the stack, so that writing to one changes the stack.

    Gradients accumulate in the stacked parameters.
    """

    def __init__(self, owner: StackOwner, expert: int) -> None:
        nn.Module.__init__(self)
        for name in ("gate", "up", "down"):
            setattr(self, name, _Slice(owner, expert, name))

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for name in ("gate", "up", "down"):
            yield from getattr(self, name).named_parameters(f"{prefix}.{name}" if prefix else name)


class ExpertList:
    """`moe.routed_experts`: indexed, iterated and assigned like upstream's ModuleList, but registers no module."""

    def __init__(self, owner: StackOwner) -> None:
        self._owner = owner
        self._made: dict[int, nn.Module] = {}

    def __len__(self) -> int:
        return self._owner.n_experts

    def _index(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"expert {index}: there are {len(self)}")
        return index % len(self)

    def __getitem__(self, index: int | slice) -> nn.Module | list[nn.Module]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = self._index(index)
        if index not in self._made:
            self._made[index] = ExpertView(self._owner, index)
        return self._made[index]

    def __setitem__(self, index: int, module: nn.Module) -> None:
        self._made[self._index(index)] = module

    def __iter__(self) -> Iterator[nn.Module]:
        return (self[i] for i in range(len(self)))

    def __getattr__(self, name: str) -> nn.Module:
        if name.isdigit():
            return self[int(name)]
        raise AttributeError(name)

    def parameters(self) -> Iterator[torch.Tensor]:
        """The weights of all experts, as views."""
        for expert in self:
            yield from expert.parameters()

    def views(self) -> Iterator[nn.Module]:
        """Temporary views of all experts, for code that reads or fills their weights."""
        return (ExpertView(self._owner, index) for index in range(len(self)))

    def modified(self) -> dict[int, str]:
        """{expert: reason} of the experts that have to be called as modules."""
        if hooks_on_all_modules():
            list(self)
        reasons = ((index, why_modified(module)) for index, module in self._made.items())
        return {index: reason for index, reason in reasons if reason is not None}
