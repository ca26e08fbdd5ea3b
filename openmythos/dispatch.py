"""The one table that maps an op and a device to the backends that can compute it, in order of preference.

A call is served by, in this order: the backend named by the innermost `use_backend(...)`, the one
named by the environment variable OPENMYTHOS_BACKEND, the first row whose `supports(...)` has no
objection, and the reference, which accepts everything. A backend asked for by name that cannot
serve a call raises; nothing falls back after an exception.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

BACKENDS = ("native", "triton", "cpu", "torch", "reference")

Supports = Callable[..., "str | None"]


class Backend(NamedTuple):
    """One row: `call` computes the op, `supports` returns None or the reason why it cannot."""

    name: str
    call: Callable
    supports: Supports


class Decision(NamedTuple):
    """What `explain` says of one row: the backend, whether it serves the call, and why or why not."""

    backend: str
    chosen: bool
    reason: str


class BackendError(RuntimeError):
    """A backend asked for by name cannot serve the call."""


def _always(*_args: object) -> None:
    return None


_table: dict[tuple[str, str], list[Backend]] = {}
_reference: dict[str, Backend] = {}
_forced: ContextVar[str | None] = ContextVar("openmythos_backend", default=None)
_record: ContextVar[Counter | None] = ContextVar("openmythos_record", default=None)


def _check_name(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}={name!r}: allowed are {', '.join(BACKENDS)}")
    return name


@functools.cache
def environment_backend() -> str | None:
    """The backend named by OPENMYTHOS_BACKEND, or None when it is unset or empty."""
    name = os.environ.get("OPENMYTHOS_BACKEND", "")
    return _check_name(name, "OPENMYTHOS_BACKEND") if name else None


def register(op: str, backend: str, call: Callable, *, device: str, supports: Supports = _always) -> None:
    """Append a row for `op` on `device` ("cpu", "cuda"); rows registered first are preferred."""
    _table.setdefault((op, device), []).append(Backend(_check_name(backend, "backend"), call, supports))


def register_reference(op: str, call: Callable) -> None:
    """Set the reference of `op`: the last resort on every device."""
    _reference[op] = Backend("reference", call, _always)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every op inside the block by the named backend.

    An op for which that backend has no row at all on the device (the backward of an op it only has
    forward, say) is chosen as usual; one that it has but cannot serve with these arguments raises
    BackendError.
    """
    token = _forced.set(_check_name(name, "name"))
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def record() -> Iterator[Counter]:
    """Count (op, backend) pairs served inside the block."""
    counter: Counter = Counter()
    token = _record.set(counter)
    try:
        yield counter
    finally:
        _record.reset(token)


def rows(op: str, device: str) -> list[Backend]:
    """All rows of `op` on `device`, in order of preference, the reference last."""
    return [*_table.get((op, device), ()), _reference[op]]


def ops() -> list[str]:
    """Names of all ops in the table."""
    return sorted(_reference)


def asked_for() -> str | None:
    """The backend that is asked for by name here, or None."""
    return _forced.get() or environment_backend()


def _forced_row(name: str, op: str, device: str, args: tuple) -> Backend | None:
    for row in rows(op, device):
        if row.name == name:
            reason = row.supports(*args)
            if reason is not None:
                raise BackendError(f"backend {name!r} was asked for but cannot serve {op} on {device}: {reason}")
            return row
    if not _serves_any(name, device):
        raise BackendError(f"backend {name!r} was asked for but serves no op on {device}")
    return None


def _serves_any(name: str, device: str) -> bool:
    return any(row.name == name for (_, where), listed in _table.items() if where == device for row in listed)


def select(op: str, device: str, *args: object) -> Callable:
    """The callable that serves `op` for these arguments."""
    name = asked_for()
    row = _forced_row(name, op, device, args) if name else None
    if row is None:
        for row in _table.get((op, device), ()):
            if row.supports(*args) is None:
                break
        else:
            row = _reference[op]
    counter = _record.get()
    if counter is not None:
        counter[op, row.name] += 1
    return row.call


def explain(op: str, *args: object, device: str | None = None) -> list[Decision]:
    """Why each backend would or would not serve `op` with these arguments.

    `args` are those of the op's public function, tensors first; the device is theirs unless given.
    """
    if op not in _reference:
        raise ValueError(f"op={op!r}: allowed are {', '.join(ops())}")
    device = device or next((arg.device.type for arg in args if hasattr(arg, "device")), "cpu")
    forced = asked_for()
    if forced and not any(row.name == forced for row in rows(op, device)):
        if not _serves_any(forced, device):
            reason = f"{forced!r} is asked for and serves no op on {device}, so the call raises"
            return [Decision(row.name, False, reason) for row in rows(op, device)]
        forced = None
    decisions, taken = [], False
    for row in rows(op, device):
        reason = row.supports(*args)
        if forced and row.name != forced:
            decisions.append(Decision(row.name, False, f"use_backend asks for {forced!r}"))
        elif reason is not None:
            decisions.append(Decision(row.name, False, reason))
        elif taken:
            decisions.append(Decision(row.name, False, "a backend above serves the call"))
        else:
            taken = True
            decisions.append(Decision(row.name, True, "asked for by name" if forced else "first that can"))
    return decisions
