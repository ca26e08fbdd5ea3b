"""Run the demo: build, warm up, time, compare, save, print."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

import openmythos
from openmythos import dispatch
from openmythos.backends import library
from openmythos.demo import measure, report
from openmythos.demo.models import SEED, ComparedModel, DemoError, build, check_packages
from openmythos.demo.progress import Progress
from openmythos.demo.text import LENGTH, tokens
from openmythos.host import available_memory, cores, cpu_name, peak_resident_memory, version_of
from openmythos.terminal import console

# Seconds after which no round begins, and the share of them that prefill may use.
BUDGET = {"1b": 300.0, "small": 25.0}
PREFILL_SHARE = 0.7
PREFILL_ROUNDS, DECODE_ROUNDS = 5, 48
# Timed rounds of prefill and of decode that run even when the time is up.
MIN_ROUNDS = {"1b": (2, 3), "small": (3, 5)}
# Measured peak of the whole run in bytes, rounded up.
MEMORY = {"1b": 13.8e9, "small": 1.0e9}


def _prepare(size: str, out: Path) -> None:
    """Raise DemoError for every failure that can be detected before minutes of work."""
    check_packages()
    try:
        dispatch.environment_backend()
        library.cpu_isa()
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"--out {out}: {error.strerror}") from error
    except (ValueError, RuntimeError) as error:
        raise DemoError(str(error)) from error
    free = available_memory()
    if free is not None and free < MEMORY[size]:
        hint = "" if size == "small" else "; --size small (make demo SIZE=small) needs far less"
        raise DemoError(f"needs {MEMORY[size] / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free{hint}")


def _facts(size: str, models: list[ComparedModel], seconds: float) -> dict[str, object]:
    model = models[-1].model
    return {
        "openmythos": openmythos.__version__,
        "upstream": version_of("open-mythos"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "cpu_isa": library.cpu_isa(),
        "size": size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "config": model.cfg.to_dict(),
        "seed": SEED,
        "prompt_tokens": measure.PROMPT,
        "loops": measure.LOOPS,
        "seconds": round(seconds, 1),
        "peak_memory_bytes": peak_resident_memory(),
    }


def _title(facts: dict[str, object]) -> str:
    name = "mythos_1b" if facts["size"] == "1b" else "a small model with mythos_1b's structure"
    size = f"{facts['parameters'] / 1e9:.2f} B" if facts["size"] == "1b" else f"{facts['parameters'] / 1e6:.1f} M"
    isa = facts["cpu_isa"] or "no native library"
    work = f"{name}, {size} parameters, {measure.LOOPS} loops"
    return f"{work}, on {facts['cpu']} ({isa}), {facts['threads']} threads"


def _measure(
    models: list[ComparedModel], size: str, rounds: int | None, progress: Progress
) -> tuple[measure.Phase, measure.Phase]:
    budget, min_rounds = BUDGET[size], MIN_ROUNDS[size]
    prefill_rounds = rounds or PREFILL_ROUNDS
    decode_rounds = min(rounds or DECODE_ROUNDS, LENGTH - measure.PROMPT - 1)
    ids = tokens(measure.PROMPT + 1 + decode_rounds)
    deadline = progress.elapsed + PREFILL_SHARE * (budget - progress.elapsed)
    limits = measure.Limits(min_rounds[0], prefill_rounds, deadline)
    prefill, caches = measure.prefill(models, ids, limits, progress)
    limits = measure.Limits(min_rounds[1], decode_rounds, budget)
    return prefill, measure.decode(models, ids, caches, limits, progress)


def run_demo(size: str, out: Path, rounds: int | None = None) -> None:
    """Print the comparison and write demo.json and demo.png to the folder `out`.

    size: "1b" or "small". rounds: the maximum number of timed rounds of each kind; a time budget limits them too.

    Raises:
        DemoError: when a package or memory is missing, `out` is no folder, or a selected backend cannot serve.
    """
    _prepare(size, out)
    with Progress() as progress:
        models = build(size, progress)
        try:
            # An outer autocast context keeps the weight casts of the inner ones, so that upstream under autocast
            # is timed without casting its weights in every call.
            with torch.autocast("cpu", enabled=False):
                phases = _measure(models, size, rounds, progress)
        except dispatch.BackendError as error:
            raise DemoError(str(error)) from error
        progress.phase("compare the logits")
        rows = [row for phase in phases for row in report.rows_of(phase)]
        facts = _facts(size, models, progress.elapsed)
        progress.phase("write demo.json and demo.png")
        _save(out, facts, rows)
    _print(out, facts, rows, [len(next(iter(phase.seconds.values()))) for phase in phases])


def _save(out: Path, facts: dict[str, object], rows: list[report.Row]) -> None:
    try:
        report.save_json(out / "demo.json", facts, rows)
        report.save_png(out / "demo.png", _title(facts), rows)
    except OSError as error:
        raise DemoError(f"--out {out}: {error}") from error


def _print(out: Path, facts: dict[str, object], rows: list[report.Row], counts: list[int]) -> None:
    screen = console()
    screen.print(_title(facts), markup=False)
    screen.print(report.table(rows, screen))
    screen.print(
        f"Medians of {counts[0]} and {counts[1]} interleaved rounds. Speedup, error of the logits (relative, "
        f"Frobenius), argmax agreement and KL (nats) are against {report.BASELINE} on the same text.",
        markup=False,
    )
    peak = facts["peak_memory_bytes"]
    memory = "" if peak is None else f", peak memory {peak / 1e9:.1f} GB"
    screen.print(f"Took {facts['seconds']:.0f} s{memory}.")
    screen.print(f"Wrote {out / 'demo.json'} and {out / 'demo.png'}", markup=False, soft_wrap=True)
