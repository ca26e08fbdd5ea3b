"""The dispatch table: for each op and device, the kernels that compute it in order of preference.

A call is a NamedTuple, the op's contract. It is served by, in this order: the backend named by the innermost
`use_backend(...)`, the one named by the environment variable OPENMYTHOS_BACKEND, the first entry whose
`supports(call)` returns None, and the reference, which accepts every call. A backend selected by name that cannot
serve a call raises BackendError; nothing falls back after an exception.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

BACKENDS = ("cpp", "triton", "torch", "reference")

Call = tuple[Any, ...]
Run = Callable[[Any], Any]
Supports = Callable[[Any], "str | None"]


class Entry(NamedTuple):
    """A backend's kernel of an op: `run(call)` computes it, `supports(call)` returns None or the reason why it cannot.

    With `validates`, `supports` also checks the op's contract, so that Python need not.
    """

    name: str
    run: Run
    supports: Supports
    validates: bool = False


class Decision(NamedTuple):
    """What `explain` says about one entry: the backend, whether it serves the call, and the reason."""

    backend: str
    chosen: bool
    reason: str


class BackendError(RuntimeError):
    """A backend selected by name cannot serve the call."""


def _supports_all(_call: Call) -> None:
    return None


_table: dict[tuple[str, str], list[Entry]] = {}
_reference: dict[str, Entry] = {}
_contract: dict[str, type[Call]] = {}
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


def register(
    op: str,
    backend: str,
    run: Run,
    *,
    device: str,
    supports: Supports = _supports_all,
    validates: bool = False,
) -> None:
    """Append an entry for `op` on `device` ("cpu", "cuda"); entries registered first are preferred."""
    _table.setdefault((op, device), []).append(Entry(_check_name(backend, "backend"), run, supports, validates))


def register_reference(op: str, contract: type[Call], run: Run) -> None:
    """Declare `op`: the type of its call, and the reference, which is its last entry on every device."""
    _contract[op] = contract
    _reference[op] = Entry("reference", run, _supports_all)


def contract(op: str) -> type[Call]:
    """The NamedTuple that describes a call of `op`."""
    if op not in _contract:
        raise ValueError(f"op={op!r}: allowed are {', '.join(ops())}")
    return _contract[op]


def builder(op: str) -> Callable[..., Call]:
    """The function that builds the typed call of `op` from the arguments of `openmythos::<op>`."""
    kind = contract(op)
    return getattr(kind, "from_flat", kind)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every op inside the block by the named backend.

    An op that the backend does not implement on the device (such as the backward of an op of which it has only
    the forward) is dispatched as usual. A call that it implements but cannot serve raises BackendError.
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


def entries(op: str, device: str) -> list[Entry]:
    """All entries of `op` on `device` in order of preference, the reference last."""
    return [*_table.get((op, device), ()), _reference[op]]


def ops() -> list[str]:
    """The names of all ops in the table."""
    return sorted(_reference)


def selected_by_name() -> str | None:
    """The backend that `use_backend` or OPENMYTHOS_BACKEND names here, or None."""
    return _forced.get() or environment_backend()


def _forced_entry(name: str, op: str, device: str, call: Call) -> Entry | None:
    for entry in entries(op, device):
        if entry.name == name:
            reason = entry.supports(call)
            if reason is not None:
                raise BackendError(f"backend {name!r} was selected but cannot serve {op} on {device}: {reason}")
            return entry
    if not _serves_any(name, device):
        raise BackendError(f"backend {name!r} was selected but serves no op on {device}")
    return None


def _serves_any(name: str, device: str) -> bool:
    return any(entry.name == name for (_, where), listed in _table.items() if where == device for entry in listed)


def _entry(op: str, device: str, call: Call, check: Callable[[Any], None] | None = None) -> Entry:
    """The entry that serves this call of `op` on `device`."""
    name = selected_by_name()
    if name:
        if check is not None:
            check(call)
        entry = _forced_entry(name, op, device, call)
        if entry is not None:
            return entry
        check = None
    for entry in _table.get((op, device), ()):
        if check is not None and not entry.validates:
            check(call)
            check = None
        if entry.supports(call) is None:
            return entry
    if check is not None:
        check(call)
    return _reference[op]


def select(op: str, device: str, call: Call, check: Callable[[Any], None] | None = None) -> Run:
    """The function that runs this call of `op` on `device`; `check` raises if the call breaks the op's contract."""
    entry = _entry(op, device, call, check)
    counter = _record.get()
    if counter is not None:
        counter[op, entry.name] += 1
    return entry.run


def select_for_all(op: str, device: str, call: Call) -> Run:
    """The function that runs this call of `op` on `device`, and calls that differ from it only in values."""
    entry, counter = _entry(op, device, call), _record.get()
    if counter is None:
        return entry.run

    def counted(call: Call) -> Any:
        counter[op, entry.name] += 1
        return entry.run(call)

    return counted


def explain(op: str, *args: object, device: str | None = None) -> list[Decision]:
    """Why each backend would or would not serve `op`.

    `args`: the op's typed call, or the arguments of `openmythos::<op>` in order. The device is theirs unless given.

    Raises:
        ValueError: when there is no op of that name.
    """
    kind = contract(op)
    call = args[0] if len(args) == 1 and isinstance(args[0], kind) else builder(op)(*args)
    device = device or next((part.device.type for part in call if hasattr(part, "device")), "cpu")
    forced = selected_by_name()
    if forced and not any(entry.name == forced for entry in entries(op, device)):
        if not _serves_any(forced, device):
            reason = f"{forced!r} was selected and serves no op on {device}, so the call raises"
            return [Decision(entry.name, False, reason) for entry in entries(op, device)]
        forced = None
    decisions, taken = [], False
    for entry in entries(op, device):
        reason = entry.supports(call)
        if forced and entry.name != forced:
            decisions.append(Decision(entry.name, False, f"use_backend selects {forced!r}"))
        elif reason is not None:
            decisions.append(Decision(entry.name, False, reason))
        elif taken:
            decisions.append(Decision(entry.name, False, "a backend above serves the call"))
        else:
            taken = True
            decisions.append(Decision(entry.name, True, "selected by name" if forced else "first that can"))
    return decisions
