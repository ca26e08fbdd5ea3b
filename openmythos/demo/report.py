"""The results of the demo as a table, as JSON and as a chart."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from openmythos.demo.measure import Phase
from openmythos.demo.metrics import agreement
from openmythos.demo.models import BASELINE
from openmythos.terminal import table_box
from openmythos.timing import speedup

HEADERS = ("", "time", "speedup", "error", "argmax", "KL", "KV B/tok")
# Terminals of at least this width show the backends in a column, narrower ones in lines below the table.
WIDE = 130


@dataclass
class Row:
    """One model in one phase. Error, argmax shares and KL are against the baseline's logits, None for the baseline."""

    phase: str
    model: str
    seconds: float
    speedup: float
    error: float | None
    argmax: float | None
    argmax_clear: float | None
    kl: float | None
    kv_bytes_per_token: float | None
    backends: dict[str, dict[str, int]]
    rounds: list[float]


def rows_of(phase: Phase) -> list[Row]:
    """Medians over the rounds; the speed-up is the median of the ratios within each round."""
    base = phase.seconds[BASELINE]
    rows = []
    for name, seconds in phase.seconds.items():
        scores = (None,) * 4 if name == BASELINE else agreement(phase.logits[name], phase.logits[BASELINE])
        rows.append(
            Row(
                phase.name,
                name,
                median(seconds),
                speedup(seconds, base).median,
                *scores,
                phase.kv_bytes_per_token.get(name),
                _by_op(phase.backends.get(name, Counter())),
                seconds,
            )
        )
    return rows


def _by_op(served: Counter) -> dict[str, dict[str, int]]:
    """{op: {backend: calls}}."""
    ops: dict[str, dict[str, int]] = {}
    for (op, backend), calls in sorted(served.items()):
        ops.setdefault(op, {})[backend] = calls
    return ops


def backends_text(ops: dict[str, dict[str, int]]) -> str:
    """ "cpp: loop_step_, moe_experts; torch: linear (8 of 90 calls)"."""
    names: dict[str, list[str]] = {}
    for op, backends in ops.items():
        total = sum(backends.values())
        for backend, calls in backends.items():
            part = op if calls == total else f"{op} ({calls} of {total} calls)"
            names.setdefault(backend, []).append(part)
    return "; ".join(f"{backend}: {', '.join(listed)}" for backend, listed in sorted(names.items()))


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _cells(row: Row) -> list[str]:
    return [
        row.model,
        _time(row.seconds),
        f"{row.speedup:.2f}x",
        "" if row.error is None else f"{row.error:.1e}",
        _share(row.argmax),
        "" if row.kl is None else f"{row.kl:.1e}",
        "" if row.kv_bytes_per_token is None else f"{row.kv_bytes_per_token:,.0f}",
    ]


def table(rows: Sequence[Row], out: Console) -> Group:
    """The table of the demo: a section for each phase, a line for each model, the backends beside it or below."""
    wide = out.width >= WIDE
    drawn = Table(box=table_box(out), pad_edge=wide, collapse_padding=not wide)
    for header in HEADERS:
        drawn.add_column(header, justify="right" if header else "left", no_wrap=True)
    if wide:
        drawn.add_column("backends")
    below = []
    for phase in dict.fromkeys(row.phase for row in rows):
        drawn.add_row(Text(phase, style="bold"))
        for row in rows:
            if row.phase == phase:
                backends = backends_text(row.backends) or "PyTorch, eager"
                drawn.add_row(*map(Text, [*_cells(row), backends][: len(drawn.columns)]))
                below += [Text(f"{phase}, {row.model}: {backends}")] if row.backends and not wide else []
        drawn.add_section()
    return Group(drawn, *below)


def _write(path: Path, write: object) -> None:
    """Call write(temporary path), then rename the file in one step, so that a failure leaves no partial file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_json(path: Path, facts: dict[str, object], rows: Sequence[Row]) -> None:
    """Save `facts` about the run, and the rows with the seconds of every round."""
    text = json.dumps(facts | {"rows": [asdict(row) for row in rows]}, indent=2)
    _write(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def save_png(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Bars of the speed-up, one panel for each phase, labelled with time and logit error."""
    from matplotlib.figure import Figure

    phases = list(dict.fromkeys(row.phase for row in rows))
    figure = Figure(figsize=(9, 1.4 + 2.1 * len(phases)), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, phase in zip(figure.subplots(len(phases), 1, squeeze=False)[:, 0], phases, strict=True):
        shown = [row for row in rows if row.phase == phase]
        colors = ["tab:blue" if row.backends else "tab:gray" for row in shown]
        bars = axes.barh([row.model for row in shown], [row.speedup for row in shown], color=colors)
        labels = [f"{row.speedup:.2f}x, {_time(row.seconds)}{_error(row)}" for row in shown]
        axes.bar_label(bars, labels, padding=4, fontsize=8)
        axes.set_xlim(0, 1.6 * max(row.speedup for row in shown))
        axes.set_title(phase, fontsize=9, loc="left")
        axes.set_xlabel(f"speed-up over {BASELINE}", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    _write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def _error(row: Row) -> str:
    return "" if row.error is None else f", logit error {row.error:.1e}"
