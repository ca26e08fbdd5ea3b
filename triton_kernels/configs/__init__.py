"""Tuned configs as reviewed data, one JSON file per architecture; nothing is tuned at import.

A file maps a kernel's name to its configs. The first whose bounds `at_most` hold is used; the last has no bounds. All
other keys are constexprs of the kernel, num_warps, num_stages and backend options.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from openmythos.triton_kernels.launch import Target

# Triton's own options; everything else in a config is a constexpr of the kernel
OPTIONS = ("num_warps", "num_stages", "waves_per_eu", "maxnreg")
# A block has 99 KB of shared memory on these, and 163 KB on sm80, so sm80's tiles must shrink to fit.
SMALL_SHARED = ("sm86", "sm89", "sm120", "sm121")
SMALL_STAGES, SMALL_ABSORBED_ROWS = 2, 32

_recorded: ContextVar[dict[str, set[int]] | None] = ContextVar("openmythos_triton_recorded", default=None)
_pinned: ContextVar[Mapping[str, int] | None] = ContextVar("openmythos_triton_pinned", default=None)


class Config(NamedTuple):
    """How a kernel is built for one size on one target: its constexprs, and Triton's options."""

    constexprs: dict[str, Any]
    options: dict[str, Any]


@functools.cache
def _table(arch: str) -> dict[str, list[dict[str, Any]]]:
    return json.loads((Path(__file__).parent / f"{arch}.json").read_text())


def nearest(arch: str) -> str:
    """The architecture whose configs `arch` uses: the one with the same matrix instructions.

    gfx11 and gfx12 use gfx1151's (waves of 32 lanes, 64 KB of LDS), sm80 to sm89 sm80's (mma.sync), sm90 its own
    (wgmma), sm100 to sm119 sm100's (tcgen05), and sm120 and above sm80's again (mma.sync).
    """
    if arch.startswith("gfx"):
        return "gfx1151"
    major = int(arch[2:-1])
    return "sm90" if major == 9 else "sm100" if major in (10, 11) else "sm80"


@functools.cache
def _find(arch: str, kernel: str, sizes: tuple[tuple[str, int], ...]) -> int:
    known = dict(sizes)
    for index, entry in enumerate(_table(arch)[kernel]):
        if all(known[name] <= bound for name, bound in entry.get("at_most", {}).items()):
            return index
    raise LookupError(f"{arch}.json: no config of {kernel} takes {known}; the last one must be without bounds")


@functools.cache
def _entry(arch: str, kernel: str, index: int) -> Config:
    """An entry of the file that `arch` uses, shrunk to fit `arch`."""
    chosen = {name: value for name, value in _table(nearest(arch))[kernel][index].items() if name != "at_most"}
    if arch in SMALL_SHARED:
        most = {"num_stages": SMALL_STAGES} | ({"BLOCK_M": SMALL_ABSORBED_ROWS} if kernel == "mla_decode" else {})
        chosen |= {name: min(chosen[name], bound) for name, bound in most.items() if name in chosen}
    options = {name: chosen.pop(name) for name in OPTIONS if name in chosen}
    return Config(chosen, options)


def config(kernel: str, target: Target, **sizes: int) -> Config:
    """The tuned config of `kernel` for these sizes; an architecture without a file uses the nearest one's."""
    fixed = _pinned.get()
    index = fixed[kernel] if fixed and kernel in fixed else _find(nearest(target.arch), kernel, tuple(sizes.items()))
    found = _recorded.get()
    if found is not None:
        found.setdefault(kernel, set()).add(index)
    return _entry(target.arch, kernel, index)


def all_configs(kernel: str, arch: str) -> list[dict[str, Any]]:
    """Every entry of a kernel, with its bounds, for ahead-of-time compilation."""
    return _table(arch)[kernel]


def kernels(arch: str) -> list[str]:
    """The kernels that have configs for `arch`."""
    return list(_table(arch))


@contextmanager
def record() -> Iterator[dict[str, set[int]]]:
    """{kernel: indices of the entries that were used inside the block}."""
    found: dict[str, set[int]] = {}
    token = _recorded.set(found)
    try:
        yield found
    finally:
        _recorded.reset(token)


@contextmanager
def pinned(places: Mapping[str, int]) -> Iterator[None]:
    """Use these entries inside the block for any sizes, so that small inputs run the code of large ones."""
    token = _pinned.set(places)
    try:
        yield
    finally:
        _pinned.reset(token)
