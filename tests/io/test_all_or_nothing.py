"""A save that fails or is killed at any point leaves the old checkpoint or the complete new one."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import openmythos
from openmythos.io import folder as folder_module
from openmythos.io import writing
from tests.io.checkpoints import assert_same, model_of, weights

OLD_SHARDS, NEW_SHARDS = 30_000, 20_000


class Killed(BaseException):
    """Simulates the end of the process: nothing runs after it, cleanup included."""


def saved(folder: Path, shard: int = OLD_SHARDS) -> openmythos.OpenMythos:
    model = model_of(seed=1)
    openmythos.save(model, folder, max_shard_bytes=shard)
    return model


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def failing_after(calls: int, function: Callable, error: BaseException) -> Callable:
    """`function`, except that call number `calls` and all later ones raise."""
    count = 0

    def wrapped(*args: object, **kwargs: object) -> object:
        nonlocal count
        count += 1
        if count > calls:
            raise error
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()], ids=["full", "interrupt"])
@pytest.mark.parametrize("calls", [0, 1, 7, 40])
def test_a_failed_write_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int, error: BaseException
) -> None:
    old = saved(tmp_path)
    before = listing(tmp_path)
    monkeypatch.setattr(writing, "_bytes", failing_after(calls, writing._bytes, error))
    with pytest.raises(type(error)):
        openmythos.save(model_of(seed=2), tmp_path, max_shard_bytes=NEW_SHARDS)
    assert listing(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert_same(openmythos.load(tmp_path), weights(old))


def test_a_failed_first_save_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_bytes", failing_after(3, writing._bytes, OSError(errno.EIO, "broken disk")))
    with pytest.raises(OSError, match="broken disk"):
        openmythos.save(model_of(), tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = saved(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(writing, "_write_shard", failing_after(0, writing._write_shard, AssertionError("wrote")))
    with pytest.raises(OSError, match="bytes are needed and 1,000 are free") as error:
        openmythos.save(model_of(seed=2), tmp_path)
    assert error.value.errno == errno.ENOSPC
    assert_same(openmythos.load(tmp_path), weights(old))


@pytest.mark.parametrize("new_shard", [NEW_SHARDS, 5 * 2**30], ids=["to-shards", "to-one-file"])
@pytest.mark.parametrize("old_shard", [OLD_SHARDS, 5 * 2**30], ids=["from-shards", "from-one-file"])
@pytest.mark.parametrize("operation", ["rename", "replace", "unlink", "rmdir"])
@pytest.mark.parametrize("calls", [0, 1, 3])
def test_killed_between_any_two_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, calls: int, old_shard: int, new_shard: int
) -> None:
    old, new = saved(tmp_path, old_shard), model_of(seed=2, act_threshold=0.7)
    with monkeypatch.context() as patch:
        owner = os if operation in ("rename", "replace") else Path
        patch.setattr(owner, operation, failing_after(calls, getattr(owner, operation), Killed()))
        patch.setattr(folder_module.shutil, "rmtree", lambda *args, **kwargs: None)
        try:
            openmythos.save(new, tmp_path, max_shard_bytes=new_shard)
        except Killed:
            interrupted = True
        else:
            interrupted = False
    committed = not (interrupted and operation == "rename" and calls == 0)
    expected = new if committed else old
    loaded = openmythos.load(tmp_path)
    assert_same(loaded, weights(expected))
    assert loaded.cfg == expected.cfg
    third = model_of(seed=3)
    openmythos.save(third, tmp_path, max_shard_bytes=new_shard)
    assert_same(openmythos.load(tmp_path), weights(third))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_leftovers_of_a_killed_save_are_cleaned(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / ".saving-0123456789ab").mkdir()
    (tmp_path / ".saving-0123456789ab" / "model.safetensors").write_bytes(b"half")
    openmythos.save(model_of(seed=2), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_two_savers_do_not_meet(tmp_path: Path) -> None:
    old = saved(tmp_path)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another process is saving"):
            openmythos.save(model_of(seed=2), tmp_path)
    finally:
        os.close(descriptor)
    assert_same(openmythos.load(tmp_path), weights(old))


def test_a_file_in_the_folders_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file; a checkpoint is a folder"):
        openmythos.save(model_of(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_user_s_other_weight_files_stay(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "model-lora.safetensors").write_bytes(b"mine")
    openmythos.save(model_of(seed=2), tmp_path)
    assert (tmp_path / "model-lora.safetensors").read_bytes() == b"mine"
    assert torch.equal(openmythos.load(tmp_path).norm.weight, model_of(seed=2).norm.weight)
