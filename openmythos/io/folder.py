"""Replaces several files of one folder atomically: all of them, or none.

New files are written and synced in a hidden folder inside the target. Renaming that folder to `.saved` is the one
atomic step that makes them current; then each file moves to its place. `current` handles an interruption at any point,
so a reader finds either the old files or the new ones, and the next save completes the moves.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_STAGING, _SAVED, _LIST = ".saving-", ".saved", "files.json"
_WEIGHT_FILE = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def sync(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def current(folder: Path) -> dict[str, Path]:
    """{name: path} of the folder's files; those of an interrupted save take precedence."""
    pending = folder / _SAVED
    files = {entry.name: entry for entry in folder.iterdir() if entry.is_file()}
    if (pending / _LIST).is_file():
        names = json.loads((pending / _LIST).read_text())
        moved = {name: pending / name for name in names if (pending / name).is_file()}
        stale = {name for name in files if _shadowed(name, names)}
        files = {name: path for name, path in files.items() if name not in stale} | moved
    return files


def _shadowed(name: str, names: list[str]) -> bool:
    """Whether a file belongs to the checkpoint that was replaced, and to no other."""
    return name not in names and _WEIGHT_FILE.fullmatch(name) is not None


def _complete(folder: Path) -> None:
    """Move a committed save's files to their places, also after an interruption."""
    pending = folder / _SAVED
    if not pending.is_dir():
        return
    if (pending / _LIST).is_file():
        names = json.loads((pending / _LIST).read_text())
        for name in names:
            if (pending / name).is_file():
                os.replace(pending / name, folder / name)
        for entry in list(folder.iterdir()):
            if entry.is_file() and _shadowed(entry.name, names):
                entry.unlink()
        sync(folder)
        (pending / _LIST).unlink()
    pending.rmdir()
    sync(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder against other saves; the lock ends with the process. Some network disks have no locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise BlockingIOError(error.errno, f"{folder}: another process is saving into it") from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def replacing(folder: Path, needed: Callable[[], int]) -> Iterator[Path]:
    """Yields an empty folder; when the block ends, the files in it replace those of the same name in `folder`.

    An exception in the block leaves `folder` as it was. `needed()` bytes must be free.

    Raises:
        NotADirectoryError: when `folder` is a file.
        OSError: ENOSPC, before anything is written, when the disk has too little room.
        BlockingIOError: when another process is saving there.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file; a checkpoint is a folder")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / f"{_STAGING}{uuid.uuid4().hex[:12]}"
    try:
        with _locked(folder):
            for left in folder.glob(f"{_STAGING}*"):
                shutil.rmtree(left, ignore_errors=True)
            _complete(folder)
            size, free = needed(), shutil.disk_usage(folder).free
            if size > free:
                raise OSError(errno.ENOSPC, f"{folder}: {size:,} bytes are needed and {free:,} are free")
            staging.mkdir()
            yield staging
            names = sorted(entry.name for entry in staging.iterdir())
            (staging / _LIST).write_text(json.dumps(names))
            for name in (*names, _LIST):
                sync(staging / name)
            sync(staging)
            os.rename(staging, folder / _SAVED)
            sync(folder)
            _complete(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise
