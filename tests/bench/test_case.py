"""bench.case: wrong results are never timed, failing baselines get a reason, ratios come from the rounds."""

from __future__ import annotations

import types

import pytest
import torch

from bench import case as case_module
from bench import rounds
from bench.case import Case, WrongAnswerError, run_case
from bench.ceilings import Product, Stream
from bench.rounds import Sampler, compare_interleaved
from bench.shapes import last_cache_bytes, sets_beyond_cache
from openmythos import timing
from openmythos.roofline import Cost
from openmythos.timing import spread

X = torch.randn(4, 8)
COUNTED = Cost(weights=1e6, flops=2e6)


class Clock:
    """A clock that advances on demand, and by ten nanoseconds whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-8
        return self.now

    def taking(self, milliseconds: float):
        """A function that returns its input after this time."""

        def function(x: torch.Tensor | None = None) -> torch.Tensor | None:
            self.now += milliseconds / 1e3
            return x

        return function


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    fake = types.SimpleNamespace(perf_counter=made.perf_counter)
    for module in (timing, rounds, case_module):
        monkeypatch.setattr(module, "time", fake)
    return made


def case(**changes: object) -> Case:
    return Case(**{"ours": lambda x: x, "inputs": [(X,)], "expected": X, "cost": COUNTED} | changes)


def test_a_wrong_answer_is_never_timed() -> None:
    calls = []

    def wrong(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x * 1.001

    with pytest.raises(WrongAnswerError, match="the result is wrong, nothing is timed"):
        run_case(case(ours=wrong), smoke=False)
    assert len(calls) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_what_is_not_a_number_is_wrong(bad: float) -> None:
    with pytest.raises(WrongAnswerError):
        run_case(case(ours=lambda x: torch.full_like(x, bad)), smoke=True)


def test_another_shape_is_wrong() -> None:
    with pytest.raises(WrongAnswerError):
        run_case(case(ours=lambda x: x[:1]), smoke=True)


def test_baselines_that_cannot_be_timed_have_a_reason() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel for this shape\nand a long trace")

    baselines = {"missing": "not installed", "broken": broken, "wrong": lambda x: x + 1}
    info, _ = run_case(case(baselines=baselines), smoke=False)
    assert info["baselines"]["missing"] == {"unavailable": "not installed"}
    assert info["baselines"]["broken"] == {"unavailable": "RuntimeError: no kernel for this shape"}
    assert "wrong answer: relative error" in info["baselines"]["wrong"]["unavailable"]


def test_ratios_rates_and_fractions(clock: Clock) -> None:
    """Ours takes 3 ms, the baseline 6, a stream of twice the bytes 4, a product of half the FLOPs 1."""
    made = case(
        ours=clock.taking(3),
        baselines={"slow": clock.taking(6)},
        stream=Stream(clock.taking(4), 2_000_000),
        products=[Product(clock.taking(1), 1_000_000)],
        tokens=6,
    )
    info, line = run_case(made, smoke=False)
    close = {"rel": 2e-3}
    assert info["baselines"]["slow"]["ratio"] == pytest.approx(2, **close)
    assert info["fraction_of_stream"] == pytest.approx(4 / 3 / 2, **close)
    assert info["fraction_of_product"] == pytest.approx(1 / 3 * 2, **close)
    assert info["fraction_of_floor"] == max(info["fraction_of_stream"], info["fraction_of_product"])
    assert info["floor_ms"] == pytest.approx(2, **close)
    assert info["wall_ms"] == pytest.approx(3, **close)
    assert info["gb_per_s"] == pytest.approx(1e6 / 3e-3 / 1e9, **close)
    assert info["tflop_per_s"] == pytest.approx(2e6 / 3e-3 / 1e12, **close)
    assert info["tokens_per_s"] == pytest.approx(2000, **close)
    assert line == "3.000 ms, 2.00x slow, 66.7% of a stream, 66.7% of the best product"
    assert info["timed_by"] == "wall"


def test_a_planted_slowdown_shows(clock: Clock) -> None:
    made = case(ours=clock.taking(3), stream=Stream(clock.taking(3), 1_000_000))
    found = [run_case(made, smoke=False, slowdown=by)[0]["fraction_of_floor"] for by in (1.0, 1.15)]
    assert found[0] / found[1] == pytest.approx(1.15, rel=5e-3)


def test_in_place_functions_are_checked_on_copies() -> None:
    def ours(x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)

    x = X.clone()
    info, _ = run_case(
        case(ours=ours, inputs=[(x,)], expected=2 * x, baselines={"other": lambda x: 2 * x}, in_place=True), True
    )
    assert torch.equal(x, X)
    assert "unavailable" not in info["baselines"]["other"]


def test_short_calls_are_repeated_and_inputs_rotate(clock: Clock) -> None:
    seen, take = [], clock.taking(0.1)
    sampler = Sampler(lambda x: (seen.append(x), take()), [(0,), (1,), (2,)])
    assert sampler.repeats == 30
    seen.clear()
    assert sampler.wall() == pytest.approx(1e-4, rel=0.01)
    assert seen == [2, 0, 1] * 10


def test_rounds_rotate_their_order(clock: Clock) -> None:
    order, take = [], clock.taking(5)
    samplers = {name: Sampler(lambda name=name: (order.append(name), take()), [()]) for name in "abc"}
    order.clear()
    compare_interleaved(samplers, 3)
    assert "".join(order) == "abcbcacab"


def test_slow_calls_get_fewer_rounds(clock: Clock) -> None:
    for milliseconds, count in ((10, 15), (500, 6), (6000, 3)):
        found = compare_interleaved({"slow": Sampler(clock.taking(milliseconds), [()])}, 15)
        assert len(found.wall["slow"]) == pytest.approx(count, abs=1)


def test_a_baseline_of_many_seconds_is_timed_once(clock: Clock) -> None:
    baseline = Sampler(clock.taking(9000), [()])
    found = compare_interleaved({"ours": Sampler(clock.taking(1000), [()]), "baseline": baseline}, 15)
    assert len(found.wall["baseline"]) == 1
    assert len(found.wall["ours"]) >= 3
    assert found.speedup("ours", "baseline").median == pytest.approx(9, rel=1e-4)


def test_spread_is_the_quartiles() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, 2.0, 4.0)
    assert spread([7.0]) == (7.0, 7.0, 7.0)


def test_rotating_inputs_are_twice_the_last_cache() -> None:
    size = last_cache_bytes() // 5
    assert 2 * last_cache_bytes() <= sets_beyond_cache(size) * size
    assert sets_beyond_cache(10 * last_cache_bytes()) == 2


def test_disturbed_rounds_are_left_out(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second is stolen in the second of five rounds, which takes ten times as long."""
    stolen, turn = [0.0], [0]

    def take() -> None:
        clock.now += 0.1 if turn[0] == 2 else 0.01
        stolen[0] += 0.5 if turn[0] == 2 else 0
        turn[0] += 1

    monkeypatch.setattr(rounds, "stolen_seconds", lambda: stolen[0])
    sampler = Sampler(take, [()])
    turn[0] = 1
    times = compare_interleaved({"ours": sampler}, 5).wall["ours"]
    assert times == pytest.approx([0.01] * 4, rel=1e-4)


def test_a_machine_that_is_always_disturbed_is_still_timed(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "stolen_seconds", lambda: clock.now)
    assert len(compare_interleaved({"ours": Sampler(clock.taking(10), [()])}, 5).wall["ours"]) == 5
