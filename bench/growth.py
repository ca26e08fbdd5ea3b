"""Growth of cost: latency and memory over loops, cache length, batch and experts, and the early exit.

    python -m bench.growth            # or: make bench-growth

mythos_1b in bfloat16; upstream in float32, the only dtype that it supports, at three points of each series. The points
of a series are interleaved, so that changes of the machine's speed bend no line. Writes growth.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import openmythos
from bench.baselines import experts, upstream
from bench.bench_moe import Layer
from bench.fit import TOLERANCE, Line, fit
from bench.memory import peak_memory
from bench.shapes import config, free_memory
from openmythos import KVCache
from openmythos.config import MythosConfig
from openmythos.roofline import device_name
from openmythos.timing import seconds

LOOPS = (1, 2, 4, 8, 16, 32, 64)
CACHE = tuple(128 * 2**n for n in range(11))
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)
EXPERTS = (8, 16, 32, 64, 128, 256)
# the bias of the halting head: positions halt after one loop, after several, never
HALTING = (6.0, 1.0, 0.0, -1.0, -2.0, -3.0)
PROMPT, TOKENS, ROUNDS = 128, 64, 5
DTYPE = torch.bfloat16


@dataclass
class Series:
    """The points of one curve: a call for each x, upstream's call for some."""

    name: str
    unit: str
    calls: dict[float, Callable[[], object]] = field(default_factory=dict)
    upstream: dict[float, Callable[[], object]] = field(default_factory=dict)
    cache_bytes: dict[float, int] = field(default_factory=dict)
    histograms: dict[float, list[int]] = field(default_factory=dict)

    def measure(self, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
        """Medians over rounds that time every point once."""
        calls = {("ours", x): call for x, call in self.calls.items()} | {
            ("upstream", x): call for x, call in self.upstream.items()
        }
        times: dict[tuple[str, float], list[float]] = {key: [] for key in calls}
        memory = {}
        for (whose, x), call in calls.items():
            say(f"{self.name}: warming up, {whose} at {x:g}")
            memory[whose, x] = peak_memory(call)
        for turn in range(rounds):
            for (whose, x), call in calls.items():
                if whose == "upstream" and turn >= 3:
                    continue
                say(f"{self.name}: round {turn + 1} of {rounds}, {whose} at {x:g}")
                times[whose, x].append(seconds(call))
        medians = {key: statistics.median(values) * 1e3 for key, values in times.items()}
        return {
            "unit": self.unit,
            "x": list(self.calls),
            "ms": [medians["ours", x] for x in self.calls],
            "peak_bytes": [memory["ours", x] for x in self.calls],
            "upstream": [(x, medians["upstream", x]) for x in self.upstream],
            "upstream_peak_bytes": [memory["upstream", x] for x in self.upstream],
            "cache_bytes": [self.cache_bytes.get(x) for x in self.calls],
            "histograms": [self.histograms.get(x) for x in self.calls],
        }


class Models:
    """mythos_1b in bfloat16 with a long context, and upstream in float32 on the same weights."""

    def __init__(self, smoke: bool, device: torch.device) -> None:
        torch.manual_seed(0)
        self.cfg = config("1b", smoke)
        self.cfg.max_seq_len = CACHE[-1] + 1
        self.device, self.smoke = device, smoke
        full = openmythos.OpenMythos(self.cfg).to(device).eval()
        self.ours = openmythos.accelerate(full, dtype=DTYPE, copy=True, progress=False).eval()
        theirs = upstream.model(self.cfg, full.state_dict(), device)
        self.theirs = None if isinstance(theirs, str) else theirs

    def points(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """The values, or the first three in a smoke run."""
        return values[:3] if self.smoke else values

    def ids(self, batch: int, count: int = 1) -> torch.Tensor:
        """Random token ids."""
        return torch.randint(0, self.cfg.vocab_size, (batch, count), device=self.device)

    def cache(self, batch: int, tokens: int, loops: int) -> KVCache:
        """A cache of random rows; their values do not change the cost of attention."""
        cfg, cache = self.cfg, KVCache(self.cfg.max_seq_len)
        layout = self.ours.recurrent.block.attn.layout
        keys = self.ours.cache_keys(loops)
        cache.reserve_slots(len(keys))
        rows = torch.randn(batch, tokens, sum(layout.widths), device=self.device).to(DTYPE)
        for key in keys:
            cache.append(key, layout, tuple(rows.split((cfg.kv_lora_rank, cfg.qk_rope_head_dim), dim=-1)))
        return cache

    def add_decode(self, series: Series, x: float, batch: int, tokens: int, loops: int) -> None:
        """The point x of a series: our model decodes a token of each sequence after `tokens` cached ones."""
        cache, ids = self.cache(batch, tokens, loops), self.ids(batch)

        def call() -> None:
            cache.truncate(tokens)
            self.ours(ids, n_loops=loops, kv_cache=cache, start_pos=tokens)

        series.calls[x], series.cache_bytes[x] = call, cache.nbytes

    def their_decode(self, batch: int, tokens: int, loops: int) -> Callable[[], object]:
        """The same call of upstream, with a cache of its own format."""
        cfg, ids = self.cfg, self.ids(batch)
        entry = {
            "c_kv": torch.randn(batch, tokens, cfg.kv_lora_rank, device=self.device),
            "k_rope": torch.randn(batch, tokens, cfg.n_heads, cfg.qk_rope_head_dim, device=self.device),
        }
        keys = self.ours.cache_keys(loops)
        return lambda: self.theirs(ids, n_loops=loops, kv_cache={key: dict(entry) for key in keys}, start_pos=tokens)


def _at(models: Models, points: tuple[float, ...], make: Callable[[int], Callable]) -> dict[float, Callable]:
    return {} if models.theirs is None else {x: make(x) for x in points}


def loops(models: Models) -> Series:
    """A decoded token after 128 cached ones, by loops."""
    series = Series("decode, by loops", "loops")
    for n in models.points(LOOPS):
        models.add_decode(series, n, 1, PROMPT, n)
    series.upstream = _at(models, (1, 4, 16), lambda n: models.their_decode(1, PROMPT, n))
    return series


def cache(models: Models) -> Series:
    """A decoded token at 16 loops, by cached tokens."""
    series = Series("decode, by cached tokens", "cached tokens")
    for n in models.points(CACHE):
        models.add_decode(series, n, 1, n, models.cfg.max_loop_iters)
    series.upstream = _at(models, (128, 1024, 4096), lambda n: models.their_decode(1, n, models.cfg.max_loop_iters))
    return series


def batch(models: Models) -> Series:
    """A decoded token of each sequence at 16 loops after 128 cached ones, by sequences."""
    series = Series("decode, by sequences", "sequences")
    for n in models.points(BATCH):
        models.add_decode(series, n, n, PROMPT, models.cfg.max_loop_iters)
    series.upstream = _at(models, (1, 4, 16), lambda n: models.their_decode(n, PROMPT, models.cfg.max_loop_iters))
    return series


def experts_of_layer(models: Models, rows: int) -> Series:
    """The MoE layer at the widths of mythos_1b, by routed experts; 4 of them serve each row."""
    series = Series(f"experts, {rows} row{'s' if rows > 1 else ''}", "routed experts")
    x = torch.randn(rows, models.cfg.dim, device=models.device)
    for count in models.points(EXPERTS):
        cfg: MythosConfig = replace(models.cfg, n_experts=count)
        size = 3 * cfg.dim * cfg.expert_dim * (count + cfg.n_experts_per_tok * cfg.n_shared_experts)
        if 6 * size > free_memory(models.device):
            continue
        layer = Layer(cfg, DTYPE, models.device)
        series.calls[count] = lambda layer=layer: layer(x.to(DTYPE))
        if count in (8, 32, 64):
            weights = (layer.router, layer.gate_up, layer.down)
            theirs = experts.upstream(
                cfg, *(part.float() for part in weights), [tuple(part.float() for part in one) for one in layer.shared]
            )
            if not isinstance(theirs, str):
                series.upstream[count] = lambda theirs=theirs: theirs(x)
    return series


def exit_of_loop(models: Models) -> Series:
    """64 tokens without a cache, where the model exits once all have halted, by the number of loops."""
    series = Series("early exit without a cache", "loops until all positions have halted")
    ids = models.ids(1, TOKENS)
    for bias in models.points(HALTING):
        steps = _halting_steps(models, ids, bias)
        last = int(steps.max())
        if last in series.calls:
            continue
        series.calls[last] = lambda bias=bias: _run(models.ours, ids, bias)
        series.histograms[last] = torch.bincount(steps, minlength=last + 1)[1:].tolist()
        if models.theirs is not None and len(series.upstream) < 3:
            series.upstream[last] = lambda bias=bias: _run(models.theirs, ids, bias)
    return series


def _run(model: torch.nn.Module, ids: torch.Tensor, bias: float) -> torch.Tensor:
    model.recurrent.act.halt.bias.fill_(bias)
    return model(ids)


def _halting_steps(models: Models, ids: torch.Tensor, bias: float) -> torch.Tensor:
    """The loops of each position until its halting probabilities add up to the threshold."""
    act, seen = models.ours.recurrent.act, []
    hook = act.register_forward_hook(lambda _module, _inputs, p: seen.append(p[0].float()))
    try:
        _run(models.ours, ids, bias)
    finally:
        hook.remove()
    total = torch.stack(seen).cumsum(0)
    running = (total < models.cfg.act_threshold).sum(0)
    return (running + 1).clamp(max=len(seen))


SERIES: dict[str, Callable[[Models], Series]] = {
    "loops": loops,
    "cache": cache,
    "batch": batch,
    "experts1": lambda models: experts_of_layer(models, 1),
    "experts128": lambda models: experts_of_layer(models, 128),
    "exit": exit_of_loop,
}


def lines_of(measured: dict[str, dict[str, Any]]) -> dict[str, Line]:
    """The line through each series with enough points."""
    return {name: fit(one["x"], one["ms"]) for name, one in measured.items() if len(one["x"]) >= 3}


def markdown(device: str, measured: dict[str, dict[str, Any]], lines: dict[str, Line]) -> str:
    """The series and their lines as tables."""
    text = [
        f"# {device}",
        "",
        "mythos_1b in bfloat16, upstream in float32; medians of rounds in which the points take turns.",
        "Reproduce with `make bench-growth`.",
        "",
        "![cost over size](growth.png)",
    ]
    for name, one in measured.items():
        theirs = {x: ms for x, ms in one["upstream"]}
        text += ["", f"## {name}", "", f"| {one['unit']} | ms | upstream, ms | peak MB | cache MB | |"]
        text.append("| ---: | ---: | ---: | ---: | ---: | --- |")
        columns = (one[key] for key in ("x", "ms", "peak_bytes", "cache_bytes", "histograms"))
        for x, ms, peak, held, histogram in zip(*columns, strict=True):
            note = f"positions that halt after 1, 2, ... loops: {histogram}" if histogram else ""
            sizes = ["" if size is None else f"{size / 1e6:.1f}" for size in (peak, held)]
            text.append(
                f"| {x:g} | {ms:.2f} | {f'{theirs[x]:.1f}' if x in theirs else ''} | {' | '.join(sizes)} | {note} |"
            )
        if name in lines:
            line = lines[name]
            end = "" if line.breaks is None else f"; {line.breaks:g} deviates by more than {TOLERANCE:.0%}"
            text += [
                "",
                f"Line up to {line.until:g}: {line.fixed:.3g} ms + {line.each:.3g} ms x {one['unit']}, "
                f"its points deviate by at most {line.worst:.0%}{end}.",
            ]
    return "\n".join(text) + "\n"


@torch.no_grad()
def main() -> None:
    """Measure the series and write them."""
    from bench.plots import curves

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/results") / device_name())
    parser.add_argument("--only", choices=SERIES, action="append", help="one series (may be repeated)")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--smoke", action="store_true", help="a tiny model, to test that it runs")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measured: dict[str, dict[str, Any]] = {}
    with Console(stderr=True).status("building the models") as status:
        models = Models(args.smoke, device)
        for key in args.only or SERIES:
            status.update(f"{key}: setting up")
            series = SERIES[key](models)
            measured[series.name] = series.measure(args.rounds, status.update)
    lines = lines_of(measured)
    args.out.mkdir(parents=True, exist_ok=True)
    recorded = {"device": device_name(), "torch": torch.__version__, "series": measured}
    (args.out / "growth.json").write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    (args.out / "growth.md").write_text(markdown(device_name(), measured, lines), encoding="utf-8")
    curves(measured, lines, args.out / "growth.png")
    print(f"Wrote {args.out}/growth.json, growth.md and growth.png")


if __name__ == "__main__":
    main()
