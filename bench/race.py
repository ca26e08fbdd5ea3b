"""One benchmark case: every contender is checked, then timed in turn with the others and with its ceilings."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.ceilings import Product, Stream
from bench.memory import peak_memory
from bench.peers import Function, Peers
from bench.timing import (
    CASE_SECONDS,
    MOST_ROUNDS,
    QUOTED_ROUNDS,
    QUOTED_SECONDS,
    SAMPLE_SECONDS,
    Contender,
    Rounds,
    spread,
)
from openmythos.roofline import Cost

# relative Frobenius error against the reference on the rounded inputs; a wrong answer is far above it
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


class WrongAnswerError(AssertionError):
    """Our own result differs from the reference: nothing is timed."""


@dataclass
class Case:
    """What is raced: functions over rotating input sets, the reference's result on the first, and what to count.

    `in_place`: ours writes into its inputs, so that each contender is checked on copies of them.
    """

    ours: Function
    inputs: Sequence[tuple[Any, ...]]
    expected: torch.Tensor
    cost: Cost
    peers: Peers = field(default_factory=dict)
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
    """Relative Frobenius error; infinite for another shape or anything that is not a number."""
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
    """Our error, the peers that answer right, and what to say of all of them."""
    allowed = case.allowed[case.expected.dtype]
    error = relative_error(case.ours(*_first_inputs(case)), case.expected)
    if error > allowed:
        raise WrongAnswerError(
            f"relative error {error:.2e}, allowed {allowed:.0e}: the result is wrong, nothing is timed"
        )
    able: dict[str, Function] = {}
    said: dict[str, dict] = {}
    for name, peer in case.peers.items():
        if isinstance(peer, str):
            said[name] = {"unavailable": peer}
            continue
        try:
            found = relative_error(peer(*_first_inputs(case)), case.expected)
        # a foreign library may fail in any way; its own words are the reason why it is not in the table
        except Exception as failure:
            said[name] = {
                "unavailable": f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
            }
            continue
        if found > allowed:
            said[name] = {"unavailable": f"wrong answer: relative error {found:.1e}, allowed {allowed:.0e}"}
            continue
        able[name], said[name] = peer, {"error": found}
    return error, able, said


def _rates(times: Rounds, name: str, cost: Cost) -> dict[str, float]:
    wall = statistics.median(times.times[name])
    entry = {"wall_ms": wall * 1e3}
    seconds = times.median(name)
    if times.device_times[name]:
        entry["device_ms"] = seconds * 1e3
    return entry | {"gb_per_s": cost.bytes / seconds / 1e9, "tflop_per_s": cost.flops / seconds / 1e12}


def _ceilings(times: Rounds, case: Case, streams: dict[str, int], products: dict[str, int]) -> dict[str, float]:
    """Fractions of what the same rounds measured for moving and for multiplying, and of the floor from both."""
    found: dict[str, float] = {}
    floors = []
    for name, nbytes in streams.items():
        rate = nbytes / times.median(name)
        found["stream_gb_per_s"] = rate / 1e9
        # the ratio of the rounds, scaled by useful over streamed bytes
        found["fraction_of_stream"] = times.speedup("ours", name).median * case.cost.bytes / nbytes
        floors.append(found["fraction_of_stream"])
    if products:
        best = max(products, key=lambda name: products[name] / times.median(name))
        found["product_tflop_per_s"] = products[best] / times.median(best) / 1e12
        found["fraction_of_product"] = times.speedup("ours", best).median * case.cost.flops / products[best]
        floors.append(found["fraction_of_product"])
    if floors:
        found["fraction_of_floor"] = max(floors)
        found["floor_ms"] = times.median("ours") * max(floors) * 1e3
    return found


def run(case: Case, smoke: bool, quoted: bool = False, slowdown: float = 1.0) -> tuple[dict[str, Any], str]:
    """Check, time and count one case: what goes into the report, and one line for the summary.

    A smoke run checks only. A `quoted` case gets the time that makes its ratios repeatable.
    `slowdown` above 1 makes our own calls take that much longer: it plants a regression.

    Raises:
        WrongAnswerError: when our result is not the reference's.
    """
    error, able, said = _check(case)
    info: dict[str, Any] = {
        "quoted": quoted,
        "error": error,
        "bytes": case.cost.bytes,
        "flops": case.cost.flops,
        "peers": said,
    }
    if smoke:
        return info, "checked"
    info["peak_bytes"] = peak_memory(lambda: case.ours(*case.inputs[0]))
    ours = case.ours if slowdown == 1 else _slowed(case.ours, slowdown)
    contenders = {"ours": Contender(ours, case.inputs)}
    contenders |= {name: Contender(peer, case.inputs) for name, peer in able.items()}
    streams, products = {}, {}
    # a ceiling that is sampled for a moment beside a long call would catch one mood of the machine
    least = max(SAMPLE_SECONDS, contenders["ours"].sample_seconds / 10)
    if case.stream is not None:
        turns = [case.stream] if isinstance(case.stream, Stream) else [case.stream(i) for i in range(len(case.inputs))]
        contenders["stream"] = Contender(lambda stream: stream.call(), [(stream,) for stream in turns], least)
        streams["stream"] = turns[0].nbytes
    for index, product in enumerate(case.products):
        contenders[f"product {index}"] = Contender(product.call, [()], least)
        products[f"product {index}"] = product.flops
    effort = (QUOTED_ROUNDS, QUOTED_SECONDS) if quoted else (MOST_ROUNDS, CASE_SECONDS)
    times = Rounds(contenders, *effort)
    info["rounds"] = len(times.best_times("ours"))
    info["timed_by"] = contenders["ours"].how
    info |= _rates(times, "ours", case.cost)
    own = spread(times.best_times("ours"))
    info["spread"] = (own.high - own.low) / own.median
    for name in able:
        ratio = times.speedup("ours", name)
        said[name] |= _rates(times, name, case.cost) | {"ratio": ratio.median, "low": ratio.low, "high": ratio.high}
    info |= _ceilings(times, case, streams, products)
    if case.tokens is not None:
        info["tokens_per_s"] = case.tokens / times.median("ours")
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
    """One line: time, ratios over the peers, fractions of the ceilings."""
    parts = [f"{info.get('device_ms', info['wall_ms']):.3f} ms"]
    parts += [f"{peer['ratio']:.2f}x {name}" for name, peer in info["peers"].items() if "ratio" in peer]
    for name, words in (("fraction_of_stream", "a stream"), ("fraction_of_product", "the best product")):
        if name in info:
            parts.append(f"{info[name]:.1%} of {words}")
    return ", ".join(parts)
