"""What was executed on the emulator: {sha256 of a code object: what it is and did}, one committed file an op."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("records")
Records = dict[str, dict[str, Any]]


def read(op: str) -> Records:
    """The committed records of an op."""
    path = FOLDER / f"{op}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _change(op: str, edit: Callable[[Records], Records]) -> None:
    """Rewrite the file, sorted, one code object a line, unless nothing changed; other processes wait."""
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / f"{op}.json").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        found = edit(json.loads(text) if text else {})
        ordered = sorted(found, key=lambda sha: (found[sha]["kernel"], found[sha]["config"], sha))
        new = "{\n" + ",\n".join(f"  {json.dumps(sha)}: {json.dumps(found[sha])}" for sha in ordered) + "\n}\n"
        if new != text:
            file.truncate(0)
            file.write(new)


def add(op: str, new: Records) -> None:
    """Add records. A code object that another specimen has recorded already keeps that record."""

    def edit(old: Records) -> Records:
        ours = {sha: record for sha, record in new.items() if old.get(sha, record)["specimen"] == record["specimen"]}
        return {**old, **ours}

    _change(op, edit)


def keep_only(op: str, shas: Collection[str]) -> None:
    """Drop the records of all other code objects."""
    _change(op, lambda old: {sha: record for sha, record in old.items() if sha in shas})
