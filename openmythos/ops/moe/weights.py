"""The weights of a mixture of experts, as one value that backends receive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch


class SharedExpert(NamedTuple):
    """An expert that serves every row: gate and up (J, D), down (D, J)."""

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


class ExpertWeights(Protocol):
    """The interface of every kind of expert weights."""

    shared: tuple[SharedExpert, ...]

    @property
    def count(self) -> int:
        """The number of routed experts E."""

    @property
    def width(self) -> int:
        """The number of hidden units I of a routed expert."""

    @property
    def dim(self) -> int:
        """The number of columns D of a row."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the matrices are stored in."""

    def matrices(self) -> Iterator[torch.Tensor]:
        """Every tensor of the routed and the shared experts."""

    def check(self, dim: int) -> None:
        """Raise ValueError when the shapes do not agree with each other and with rows of `dim` columns."""


class StackedExperts(NamedTuple):
    """Routed experts in two stacks: gate_up (E, 2, I, D), gate first, and down (E, D, I)."""

    gate_up: torch.Tensor
    down: torch.Tensor
    shared: tuple[SharedExpert, ...] = ()

    @property
    def count(self) -> int:
        """The number of routed experts E."""
        return self.down.shape[0]

    @property
    def width(self) -> int:
        """The number of hidden units I of a routed expert."""
        return self.down.shape[2]

    @property
    def dim(self) -> int:
        """The number of columns D of a row."""
        return self.down.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the matrices are stored in."""
        return self.gate_up.dtype

    def matrices(self) -> Iterator[torch.Tensor]:
        """Every tensor of the routed and the shared experts."""
        yield self.gate_up
        yield self.down
        for expert in self.shared:
            yield from expert

    def routed(self) -> StackedExperts:
        """The routed experts alone."""
        return StackedExperts(self.gate_up, self.down)

    def check(self, dim: int) -> None:
        """Raise ValueError when the shapes do not agree with each other and with rows of `dim` columns."""
        gate_up, down = self.gate_up.shape, self.down.shape
        if len(gate_up) != 4 or gate_up[1] != 2 or gate_up[3] != dim:
            raise ValueError(f"gate_up {tuple(gate_up)}: must be (E, 2, I, D) with D={dim}")
        if down != (gate_up[0], dim, gate_up[2]):
            raise ValueError(f"down {tuple(down)}: must be (E, D, I)={(gate_up[0], dim, gate_up[2])}")
        for index, (gate, up, out) in enumerate(self.shared):
            if gate.dim() != 2 or gate.shape[1] != dim or up.shape != gate.shape or out.shape != gate.shape[::-1]:
                raise ValueError(
                    f"shared[{index}] {tuple(gate.shape)}, {tuple(up.shape)}, {tuple(out.shape)}: must be "
                    f"gate (J, D), up (J, D) and down (D, J) with D={dim}"
                )
