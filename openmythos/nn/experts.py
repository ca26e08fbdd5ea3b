"""The SwiGLU expert, and upstream's list of routed experts as live views of the stacked weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from openmythos import ops
from openmythos.nn.pristine import fusable, hooks_on_all_modules, pristine, unchanged, why_not
from openmythos.nn.project import to_weight_dtype

if TYPE_CHECKING:
    from openmythos.nn.moe import MoEFFN


@fusable
class Expert(nn.Module):
    """down(silu(gate x) * up x) (Shazeer, arXiv 2002.05202). (..., dim) -> (..., dim)."""

    def __init__(self, dim: int, expert_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, expert_dim, bias=False)
        self.up = nn.Linear(dim, expert_dim, bias=False)
        self.down = nn.Linear(expert_dim, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = to_weight_dtype(x, self.gate)
        if _plain_projections(self):
            return ops.swiglu(x, self.gate.weight, self.up.weight, self.down.weight)
        return self.down(F.silu(self.gate(x)) * self.up(x))


def _plain_projections(expert: Expert) -> bool:
    return all(pristine(part) and part.bias is None for part in (expert.gate, expert.up, expert.down))


def is_plain(expert: nn.Module) -> bool:
    """Whether `expert` is an Expert that nobody changed, so that its weights alone say what it computes."""
    return unchanged(expert, Expert) and _plain_projections(expert)


class _Slice(nn.Linear):
    """A Linear whose weight is one matrix of the stack, looked up at each use."""

    def __init__(self, owner: MoEFFN, expert: int, name: str) -> None:
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
    """Routed expert i: an `Expert` whose weights are views of the stack, so that writing to one is seen at once.

    Gradients arrive at the stacked parameters.
    """

    def __init__(self, owner: MoEFFN, expert: int) -> None:
        nn.Module.__init__(self)
        for name in ("gate", "up", "down"):
            setattr(self, name, _Slice(owner, expert, name))

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for name in ("gate", "up", "down"):
            yield from getattr(self, name).named_parameters(f"{prefix}.{name}" if prefix else name)


class ExpertList:
    """`moe.routed_experts`: indexes, iterates and assigns like upstream's ModuleList, registering nothing twice."""

    def __init__(self, owner: MoEFFN) -> None:
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

    def changed(self) -> dict[int, str]:
        """{expert: reason} of those that have to be called as modules."""
        if hooks_on_all_modules():
            list(self)
        reasons = ((index, why_not(module)) for index, module in self._made.items())
        return {index: reason for index, reason in reasons if reason is not None}
