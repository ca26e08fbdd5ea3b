"""Fixtures of all benchmarks: device, smoke mode, the timing of a case, the description of the machine."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.case import Case, run_case
from bench.quoted import QUOTED, short
from openmythos.backends.library import cpu_isa
from openmythos.roofline import device_name, measure

_lines = pytest.StashKey[list[str]]()
_STATS = ("min", "max", "mean", "stddev", "rounds", "median", "iqr", "q1", "q3", "iterations")
# pytest-benchmark times a few rounds of its own as a cross-check, one round of a long call
_OWN_ROUNDS, _LONG_MS = 3, 1e3


def pytest_addoption(parser: pytest.Parser) -> None:
    """An option that plants a regression, to test that bench-compare catches it."""
    parser.addoption("--plant-slowdown", type=float, default=1.0, help="make our calls take this many times as long")


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the list of the summary's lines."""
    config.stash[_lines] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the quoted cases, so that `-m quoted` selects them."""
    for item in items:
        if short(item.nodeid) in QUOTED:
            item.add_marker("quoted")


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list, output_json: dict) -> None:
    """Keep the results and the facts that they depend on; drop what could identify the machine's owner."""
    output_json["machine_info"] = {
        "device": device_name(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "isa": cpu_isa(),
        "ceilings": dataclasses.asdict(measure()),
    }
    output_json["commit_info"] = {"id": output_json["commit_info"].get("id")}
    for entry in output_json["benchmarks"]:
        entry["stats"] = {name: entry["stats"][name] for name in _STATS}
        for name in ("options", "params", "param", "group"):
            entry.pop(name, None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line for each benchmark: its time, and its ratio to every baseline and ceiling of the same rounds."""
    if config.stash[_lines]:
        terminalreporter.section("medians of interleaved rounds")
        for line in config.stash[_lines]:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def smoke(request: pytest.FixtureRequest) -> bool:
    """Whether this run only checks results, on tiny shapes (--benchmark-disable)."""
    return request.config.getoption("benchmark_disable")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def compare_interleaved(benchmark: Any, request: pytest.FixtureRequest, smoke: bool) -> Callable[[Case], None]:
    """Check and time a case; pytest-benchmark gets our wall time, its extra_info all the rest."""

    def go(case: Case) -> None:
        quoted = request.node.get_closest_marker("quoted") is not None
        info, line = run_case(case, smoke, quoted, request.config.getoption("--plant-slowdown"))
        benchmark.extra_info.update(info)
        if smoke:
            benchmark(case.ours, *case.inputs[0])
            return
        rounds = 1 if info["wall_ms"] > _LONG_MS else _OWN_ROUNDS
        benchmark.pedantic(case.ours, args=case.inputs[0], rounds=rounds, iterations=1)
        request.config.stash[_lines].append(f"{short(request.node.nodeid)}: {line}")

    return go
