"""Other implementations of the ops: each is a function of the case's inputs, or the reason why it cannot run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]
Baselines = dict[str, "Function | str"]
