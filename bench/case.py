"""One benchmark case: every implementation is checked, then timed in turn with the others and with the ceilings."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.baselines import Baselines, Function
from bench.ceilings import Product, Stream
from bench.memory import peak_memory
from bench.rounds import (
    CASE_SECONDS,
    MAX_ROUNDS,
    QUOTED_ROUNDS,
    QUOTED_SECONDS,
    SAMPLE_SECONDS,
    Rounds,
    Sampler,
    compare_interleaved,
)
from openmythos.roofline import Cost
from openmythos.timing import spread

# relative Frobenius error against the reference on the rounded inputs; a wrong result is far above it
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


class WrongAnswerError(AssertionError):
    """Our result differs from the reference's: nothing is timed."""


@dataclass
class Case:
    """One comparison: functions over rotating inputs, the reference's result on the first inputs, and the cost.

    `in_place`: ours writes to its inputs, so every implementation is checked on copies of them.
    """

    ours: Function
    inputs: Sequence[tuple[Any, ...]]
    expected: torch.Tensor
    cost: Cost
    baselines: Baselines = field(default_factory=dict)
    stream: Stream | Callable[[int], Stream] | None = None
    products: Sequence[Product] = ()
    tokens: int | None = None
    in_place: bool = False
    allowed: dict[torch.dtype, float] = field(default_factory=lambda: ALLOWED)


def truth(reference: Function, *inputs: Any) -> torch.Tensor:
    """The reference's first result on 16-bit inputs widened to float32, rounded back to their dtype."""
    dtype = next(part.dtype for part in inputs if isinstance(part, torch.Tensor))
    wide = [part.float() if isinstance(part, torch.Tensor) and part.is_floating_point() else part for part in inputs]
    result = reference(*wide)
    return (result[0] if isinstance(result, tuple) else result).to(dtype)


def relative_error(actual: object, expected: torch.Tensor) -> float:
    """Relative Frobenius error; infinite for a wrong shape, a NaN or a result that is not a tensor."""
    actual = actual[0] if isinstance(actual, tuple) else actual
    if not isinstance(actual, torch.Tensor) or actual.shape != expected.shape:
        return math.inf
    actual, expected = actual.detach().double(), expected.detach().double()
    error = ((actual - expected).norm() / expected.norm().clamp_min(1e-300)).item()
    return math.inf if math.isnan(error) else error


def _first_inputs(case: Case) -> tuple[Any, ...]:
    if not case.in_place:
        return case.inputs[0]
    return tuple(part.clone() if isinstance(part, torch.Tensor) else part for part in case.inputs[0])


def _check(case: Case) -> tuple[float, dict[str, Function], dict[str, dict]]:
    """Our error, the baselines with correct results, and the record of every baseline."""
    allowed = case.allowed[case.expected.dtype]
    error = relative_error(case.ours(*_first_inputs(case)), case.expected)
    if error > allowed:
        raise WrongAnswerError(
            f"relative error {error:.2e}, allowed {allowed:.0e}: the result is wrong, nothing is timed"
        )
    valid: dict[str, Function] = {}
    records: dict[str, dict] = {}
    for name, baseline in case.baselines.items():
        if isinstance(baseline, str):
            records[name] = {"unavailable": baseline}
            continue
        try:
            found = relative_error(baseline(*_first_inputs(case)), case.expected)
        # another library may fail in any way; its message becomes the reason
        except Exception as failure:
            message = str(failure).splitlines()[0] if str(failure) else ""
            records[name] = {"unavailable": f"{type(failure).__name__}: {message}"}
            continue
        if found > allowed:
            records[name] = {"unavailable": f"wrong answer: relative error {found:.1e}, allowed {allowed:.0e}"}
            continue
        valid[name], records[name] = baseline, {"error": found}
    return error, valid, records


def _rates(rounds: Rounds, name: str, cost: Cost) -> dict[str, float]:
    entry = {"wall_ms": statistics.median(rounds.wall[name]) * 1e3}
    seconds = rounds.median(name)
    if rounds.device[name]:
        entry["device_ms"] = seconds * 1e3
    return entry | {"gb_per_s": cost.bytes / seconds / 1e9, "tflop_per_s": cost.flops / seconds / 1e12}


def _ceilings(rounds: Rounds, case: Case, streams: dict[str, int], products: dict[str, int]) -> dict[str, float]:
    """Fractions of the bandwidth and FLOP rate of the same rounds, and of the floor from both."""
    found: dict[str, float] = {}
    fractions = []
    for name, nbytes in streams.items():
        found["stream_gb_per_s"] = nbytes / rounds.median(name) / 1e9
        # the ratio of the times, scaled by useful over streamed bytes
        found["fraction_of_stream"] = rounds.speedup("ours", name).median * case.cost.bytes / nbytes
        fractions.append(found["fraction_of_stream"])
    if products:
        best = max(products, key=lambda name: products[name] / rounds.median(name))
        found["product_tflop_per_s"] = products[best] / rounds.median(best) / 1e12
        found["fraction_of_product"] = rounds.speedup("ours", best).median * case.cost.flops / products[best]
        fractions.append(found["fraction_of_product"])
    if fractions:
        found["fraction_of_floor"] = max(fractions)
        found["floor_ms"] = rounds.median("ours") * max(fractions) * 1e3
    return found


def run_case(case: Case, smoke: bool, quoted: bool = False, slowdown: float = 1.0) -> tuple[dict[str, Any], str]:
    """Check and time one case: its record, and one line for the summary.

    smoke: only check. quoted: run long enough for repeatable ratios. slowdown: make our calls take this many times as
    long, to test that a regression is caught.

    Raises:
        WrongAnswerError: when our result is not the reference's.
    """
    error, valid, records = _check(case)
    info: dict[str, Any] = {
        "quoted": quoted,
        "error": error,
        "bytes": case.cost.bytes,
        "flops": case.cost.flops,
        "baselines": records,
    }
    if smoke:
        return info, "checked"
    info["peak_bytes"] = peak_memory(lambda: case.ours(*case.inputs[0]))
    ours = case.ours if slowdown == 1 else _slowed(case.ours, slowdown)
    samplers = {"ours": Sampler(ours, case.inputs)}
    samplers |= {name: Sampler(baseline, case.inputs) for name, baseline in valid.items()}
    streams, products = {}, {}
    # beside a long call, a short sample of a ceiling would measure the machine's speed at one moment only
    min_seconds = max(SAMPLE_SECONDS, samplers["ours"].sample_seconds / 10)
    if case.stream is not None:
        turns = [case.stream] if isinstance(case.stream, Stream) else [case.stream(i) for i in range(len(case.inputs))]
        samplers["stream"] = Sampler(lambda stream: stream.call(), [(stream,) for stream in turns], min_seconds)
        streams["stream"] = turns[0].nbytes
    for index, product in enumerate(case.products):
        samplers[f"product {index}"] = Sampler(product.call, [()], min_seconds)
        products[f"product {index}"] = product.flops
    rounds = compare_interleaved(
        samplers, *((QUOTED_ROUNDS, QUOTED_SECONDS) if quoted else (MAX_ROUNDS, CASE_SECONDS))
    )
    info["rounds"] = len(rounds.times("ours"))
    info["timed_by"] = samplers["ours"].clock
    info |= _rates(rounds, "ours", case.cost)
    own = spread(rounds.times("ours"))
    info["spread"] = (own.high - own.low) / own.median
    for name in valid:
        ratio = rounds.speedup("ours", name)
        records[name] |= _rates(rounds, name, case.cost) | {
            "ratio": ratio.median,
            "low": ratio.low,
            "high": ratio.high,
        }
    info |= _ceilings(rounds, case, streams, products)
    if case.tokens is not None:
        info["tokens_per_s"] = case.tokens / rounds.median("ours")
    return info, summary(info)


def _slowed(function: Function, slowdown: float) -> Function:
    def slow(*args: object) -> object:
        start = time.perf_counter()
        result = function(*args)
        until = start + slowdown * (time.perf_counter() - start)
        while time.perf_counter() < until:
            pass
        return result

    return slow


def summary(info: dict[str, Any]) -> str:
    """One line: time, ratios over the baselines, fractions of the ceilings."""
    parts = [f"{info.get('device_ms', info['wall_ms']):.3f} ms"]
    parts += [f"{record['ratio']:.2f}x {name}" for name, record in info["baselines"].items() if "ratio" in record]
    for name, words in (("fraction_of_stream", "a stream"), ("fraction_of_product", "the best product")):
        if name in info:
            parts.append(f"{info[name]:.1%} of {words}")
    return ", ".join(parts)
