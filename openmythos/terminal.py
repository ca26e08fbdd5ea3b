"""Tables on a terminal, and the same tables as Markdown in a pipe or a file."""

from __future__ import annotations

from rich import box
from rich.console import Console

PIPE_WIDTH = 400


def console() -> Console:
    """A console on standard output that does not wrap lines outside a terminal."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def table_box(out: Console) -> box.Box:
    """Rules for a terminal, a Markdown table for a pipe or a file."""
    return box.SIMPLE_HEAD if out.is_terminal else box.MARKDOWN
