"""Progress of the demo: one live line in a terminal, plain lines in a log."""

from __future__ import annotations

import time

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner

LOG_SECONDS = 10.0


class Progress:
    """Progress on standard error.

    Only `step` redraws the live line, since no thread may run beside a timed model.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._start = time.monotonic()
        self._live: Live | None = None
        self._logged = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop()

    @property
    def elapsed(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._start

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _begin(self, text: str, ticking: bool) -> None:
        self._stop()
        if not self._console.is_terminal:
            self._logged = self.elapsed
            self._console.print(f"[{self.elapsed:5.0f} s] {text}", markup=False)
            return
        line = Spinner("dots", text) if ticking else text
        self._live = Live(line, console=self._console, auto_refresh=ticking, transient=True)
        self._live.start(refresh=True)

    def phase(self, text: str) -> None:
        """Begin an untimed phase."""
        self._begin(f"{text} ..." if self._console.is_terminal else text, ticking=True)

    def rounds(self, text: str) -> None:
        """Begin timed rounds."""
        self._begin(text, ticking=False)

    def step(self, title: str, detail: str) -> None:
        """One call within the rounds; a log gets a line every LOG_SECONDS."""
        if self._live is not None:
            self._live.update(f"{self.elapsed:5.0f} s  {title}, {detail}", refresh=True)
        elif not self._console.is_terminal and self.elapsed - self._logged >= LOG_SECONDS:
            self._begin(title, ticking=False)
