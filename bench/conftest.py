"""What every benchmark shares: the machine's description, and the refusal to time a wrong answer."""

from __future__ import annotations

import platform
from collections.abc import Callable

import pytest
import torch

from bench.timing import Rounds, Stream
from openmythos.backends.library import cpu_isa

# relative Frobenius error against the reference in the same dtype; a wrong answer is far above it
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Name what the numbers depend on."""
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["isa"] = cpu_isa()
    machine_info["processor"] = platform.processor() or platform.machine()


@pytest.fixture
def check() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """Relative Frobenius error of a result; fails the benchmark before it is timed when it is too large."""

    def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
        error = ((actual.double() - expected.double()).norm() / expected.double().norm()).item()
        assert error <= ALLOWED[actual.dtype], f"relative error {error:.2e}: the result is wrong, nothing is timed"
        return error

    return relative_error


@pytest.fixture
def race(benchmark) -> Callable[..., Rounds]:
    """Time `ours` beside its ceiling and peers, in turn; medians and ratios go into the report."""

    def run(
        ours: Callable[[], object],
        peers: dict[str, Callable[[], object]],
        rounds: int = 15,
        ceiling: Stream | None = None,
        **info: float,
    ) -> Rounds:
        benchmark.extra_info.update(info)
        peers = {**peers, "stream": ceiling.call} if ceiling else peers
        if benchmark.disabled:
            benchmark(ours)
            return Rounds({"ours": ours, **peers}, rounds=1, warmup=0)
        result = Rounds({"ours": ours, **peers}, rounds)
        for name in result.times:
            benchmark.extra_info[f"{name}_ms"] = result.median(name) * 1e3
        for name in peers:
            benchmark.extra_info[f"speedup_over_{name}"] = result.speedup("ours", name)
        if ceiling:
            scale = info["bytes"] / ceiling.nbytes
            benchmark.extra_info["fraction_of_stream"] = result.speedup("ours", "stream") * scale
            benchmark.extra_info["stream_gbps"] = ceiling.nbytes / result.median("stream") / 1e9
        benchmark.pedantic(ours, rounds=max(rounds // 3, 3), iterations=1)
        return result

    return run
