"""Reads upstream's training checkpoints, which pickle a config object, without running code from the file."""

from __future__ import annotations

import dataclasses
import os
import pickle
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch

from openmythos.config import MythosConfig
from openmythos.io.weights import Info, Source, build, check_target
from openmythos.nn import OpenMythos

_CONFIG_NAMES = ("open_mythos.main.MythosConfig", "open_mythos.MythosConfig", "openmythos.config.MythosConfig")
_ZIP_MAGIC = b"PK\x03\x04"
_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


class TrainingCheckpoint(NamedTuple):
    """A training checkpoint's contents; tensors are views of the mapped file. A bare state dict has only `model`."""

    model: dict[str, torch.Tensor]
    config: MythosConfig | None = None
    step: int | None = None
    optimizer: dict | None = None
    vocab_size: int | None = None


class _PickledConfig:
    """Stands in for a pickled MythosConfig: takes its fields and can do nothing."""


def is_torch_file(path: Path) -> bool:
    """Whether this is a torch.save file, by its first bytes or its name."""
    return path.suffix in _SUFFIXES or _is_zip(path)


def load_training_checkpoint(
    path: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    config: object | None = None,
    strict: bool = True,
    progress: bool = True,
) -> OpenMythos:
    """The model of a checkpoint written by upstream's training script, or of a bare state dict.

    Arguments as `load`'s. A bare state dict has no config, so `config` must be given.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is damaged, asks to run code, or does not fit its config.
    """
    device = check_target(dtype, device)
    checkpoint = read_training_checkpoint(path)
    config = MythosConfig.from_any(config) if config is not None else checkpoint.config
    if config is None:
        raise ValueError(f"{path}: is a state dict without a config; give the model's config with config=")
    state = checkpoint.model
    info = {name: Info(tuple(value.shape), value.dtype) for name, value in state.items()}
    source = Source(str(path), info, state.__getitem__, mapped=_is_zip(Path(path)))
    return build(config, source, dtype=dtype, device=device, strict=strict, progress=progress)


def read_training_checkpoint(path: str | os.PathLike) -> TrainingCheckpoint:
    """Model, config, step, optimizer and vocab_size of a training checkpoint, tensors mapped from the file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is damaged, asks to run code, or is not such a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    content = _unpickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a training checkpoint or a state dict")
    if not isinstance(content.get("model"), dict):
        return TrainingCheckpoint(_tensors(path, content))
    config = content.get("cfg")
    return TrainingCheckpoint(
        model=_tensors(path, content["model"]),
        config=None if config is None else _config(path, config),
        step=content.get("step"),
        optimizer=content.get("optimizer"),
        vocab_size=content.get("vocab_size"),
    )


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == _ZIP_MAGIC


def _unpickle(path: Path) -> object:
    """torch.load that creates only tensors, plain containers and stand-ins for the config.

    Files in torch.save's old format cannot be mapped and are read whole.
    """
    allowed = [(_PickledConfig, name) for name in _CONFIG_NAMES]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        wanted = _code_asked_for(path)
        if wanted:
            raise ValueError(
                f"{path}: not loaded, since it asks for {', '.join(wanted)}; only tensors, plain containers and a "
                "MythosConfig are read, and no code of a file is run"
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not loaded: it is damaged, or asks to run code ({reason})") from None
    except (RuntimeError, EOFError, OSError, KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: is damaged, truncated or not a checkpoint ({reason})") from None


def _code_asked_for(path: Path) -> list[str]:
    """The classes and functions in the file that are not allowed, for the message."""
    if not zipfile.is_zipfile(path):
        return []
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, pickle.UnpicklingError, ValueError, IndexError, KeyError):
        return []
    return sorted(set(names) - set(_CONFIG_NAMES))


def _tensors(path: Path, state: dict) -> dict[str, torch.Tensor]:
    wrong = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if wrong or not state:
        what = f"entries that are no tensors: {', '.join(wrong[:8])}" if wrong else "nothing"
        raise ValueError(f"{path}: its state dict holds {what}")
    return dict(state)


def _config(path: Path, config: object) -> MythosConfig:
    fields = config if isinstance(config, dict) else vars(config)
    names = [field.name for field in dataclasses.fields(MythosConfig)]
    known = {name: fields[name] for name in names if name in fields}
    for name, value in known.items():
        if not isinstance(value, int | float | str):
            raise ValueError(f"{path}: its config has {name} of type {type(value).__name__}")
    try:
        return MythosConfig.from_any(known)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: its config: {error}") from None
