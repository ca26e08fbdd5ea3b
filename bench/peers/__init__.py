"""What else computes the same: each peer is a function of the case's inputs, or the reason why it is not here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]
Peers = dict[str, "Function | str"]
