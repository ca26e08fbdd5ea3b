"""What every benchmark shares: the machine's description, and the refusal to time a wrong answer."""

from __future__ import annotations

import platform
from collections.abc import Callable

import pytest
import torch

from bench.device import device_name
from bench.timing import Rounds, Stream
from openmythos.backends.library import cpu_isa

# relative Frobenius error against the reference in the same dtype; a wrong answer is far above it
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


_rows = pytest.StashKey[list[str]]()
_STATS = ("min", "max", "mean", "stddev", "rounds", "median", "iqr", "q1", "q3", "iterations")


def pytest_configure(config: pytest.Config) -> None:
    """Where the lines of the summary are gathered."""
    config.stash[_rows] = []


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list, output_json: dict) -> None:
    """Keep what the numbers depend on and the numbers, and nothing that names the machine's owner."""
    output_json["machine_info"] = {
        "device": device_name(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "isa": cpu_isa(),
    }
    output_json["commit_info"] = {"id": output_json["commit_info"].get("id")}
    for entry in output_json["benchmarks"]:
        entry["stats"] = {name: entry["stats"][name] for name in _STATS}
        entry.pop("options", None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line a benchmark: its time, and its ratio to every peer and ceiling of the same rounds."""
    if config.stash[_rows]:
        terminalreporter.section("medians of interleaved rounds")
        for row in config.stash[_rows]:
            terminalreporter.write_line(row)


@pytest.fixture
def check() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """Relative Frobenius error of a result; fails the benchmark before it is timed when it is too large."""

    def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
        error = ((actual.double() - expected.double()).norm() / expected.double().norm()).item()
        assert error <= ALLOWED[actual.dtype], f"relative error {error:.2e}: the result is wrong, nothing is timed"
        return error

    return relative_error


@pytest.fixture
def race(benchmark, request: pytest.FixtureRequest) -> Callable[..., Rounds]:
    """Time `ours` beside its ceiling and peers, in turn; medians and ratios go into the report."""

    def run(
        ours: Callable[[], object],
        peers: dict[str, Callable[[], object]],
        rounds: int = 15,
        ceiling: Stream | None = None,
        linears: dict[int, tuple[int, Callable[[], object]]] | None = None,
        **info: float,
    ) -> Rounds:
        benchmark.extra_info.update(info)
        limits = {"stream": ceiling.call} if ceiling else {}
        limits |= {f"linear_{out}": call for out, (_, call) in (linears or {}).items()}
        if benchmark.disabled:
            benchmark(ours)
            return Rounds({"ours": ours, **peers, **limits}, rounds=1, warmup=0)
        result = Rounds({"ours": ours, **peers, **limits}, rounds)
        for name in result.times:
            benchmark.extra_info[f"{name}_ms"] = result.median(name) * 1e3
        for name in peers:
            benchmark.extra_info[f"speedup_over_{name}"] = result.speedup("ours", name)
        ratios = [f"{result.speedup('ours', name):.2f}x {name}" for name in peers]
        if ceiling:
            fraction = result.speedup("ours", "stream") * info["bytes"] / ceiling.nbytes
            benchmark.extra_info["fraction_of_stream"] = fraction
            benchmark.extra_info["stream_gbps"] = ceiling.nbytes / result.median("stream") / 1e9
            ratios.append(f"{fraction:.1%} of a stream")
        if linears:
            best = max(flops / result.median(f"linear_{out}") for out, (flops, _) in linears.items())
            fraction = info["flops"] / result.median("ours") / best
            benchmark.extra_info["fraction_of_linear"] = fraction
            ratios.append(f"{fraction:.1%} of the best linear, {best / 1e9:.0f} GFLOP/s")
        benchmark.pedantic(ours, rounds=max(rounds // 3, 3), iterations=1)
        name = request.node.nodeid.removeprefix("bench/bench_").replace(".py::bench_", " ")
        request.config.stash[_rows].append(f"{name}: {result.median('ours') * 1e3:.3f} ms, {', '.join(ratios)}")
        return result

    return run
