"""Builds a model from a safetensors checkpoint, tensor by tensor."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from openmythos.config import MythosConfig
from openmythos.io import upstream_checkpoint
from openmythos.io.folder import current
from openmythos.io.weights import Info, Source, build, check_target
from openmythos.io.writing import CONFIG, DTYPE_NAMES, FORMAT_VERSION, INDEX, SINGLE
from openmythos.nn import OpenMythos

_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def load(
    folder_or_file: str | os.PathLike,
    *,
    config: object | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    strict: bool = True,
    progress: bool = True,
) -> OpenMythos:
    """The model of a checkpoint: a folder that `save` wrote, one .safetensors file, or a training checkpoint (.pt).

    config (any object or dict with a MythosConfig's fields) overrides the stored one, for another max_seq_len or
    max_loop_iters: rows of the loop scales are dropped, or the last one is repeated. dtype None keeps the stored
    dtypes; device None is the CPU. strict=False ignores unknown tensors and initialises missing ones. Memory peaks at
    the model and one tensor.

    Raises:
        FileNotFoundError: naming the missing file or folder.
        ValueError: naming a damaged file, or in one message all missing, unexpected and mis-shaped tensors.
    """
    device = check_target(dtype, device)
    path = Path(folder_or_file)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder")
    if path.is_file() and upstream_checkpoint.is_torch_file(path):
        return upstream_checkpoint.load_training_checkpoint(
            path, dtype=dtype, device=device, config=config, strict=strict, progress=progress
        )
    folder = path if path.is_dir() else path.parent
    files = current(folder)
    names, checkpoint = _weight_files(path, files)
    config = MythosConfig.from_any(config) if config is not None else _read_config(folder, files)
    with ExitStack() as stack:
        source = _open(path, {**files, **_itself(path, files)}, names, checkpoint, stack)
        return build(config, source, dtype=dtype, device=device, strict=strict, progress=progress)


def _itself(path: Path, files: dict[str, Path]) -> dict[str, Path]:
    """The requested file, or the one of an interrupted save that replaces it."""
    return {} if path.is_dir() or path.name in files else {path.name: path}


def _weight_files(path: Path, files: dict[str, Path]) -> tuple[list[str], str | None]:
    """The names of the files that hold the tensors, and the checkpoint id if an index names it."""
    if path.is_file():
        return _indexed(path.name, files) if path.name.endswith(".index.json") else ([path.name], None)
    if SINGLE in files:
        return [SINGLE], None
    if INDEX in files:
        return _indexed(INDEX, files)
    others = sorted(name for name in files if name.endswith((".pt", ".pth", ".bin", ".safetensors")))
    hint = f"; it holds {', '.join(others[-3:])}: name the file to load" if others else ""
    raise FileNotFoundError(f"{path}: holds neither {SINGLE} nor {INDEX}{hint}")


def _indexed(index: str, files: dict[str, Path]) -> tuple[list[str], str | None]:
    content = _read_json(files[index])
    where, metadata = content.get("weight_map"), content.get("metadata")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise ValueError(f"{files[index]}: has no weight_map of file names, so it is damaged or not an index")
    names = sorted(set(where.values()))
    for name in names:
        if name not in files:
            raise FileNotFoundError(f"{files[index]}: names {name}, which is not beside it")
    return names, metadata.get("checkpoint") if isinstance(metadata, dict) else None


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not readable JSON ({error}), so it is damaged or truncated") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a {type(value).__name__}, expected a JSON object")
    return value


def _read_config(folder: Path, files: dict[str, Path]) -> MythosConfig:
    if CONFIG not in files:
        raise FileNotFoundError(f"{folder / CONFIG}: is not there; give the model's config with config=")
    fields = _read_json(files[CONFIG])
    version = fields.pop("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise ValueError(f"{files[CONFIG]}: has format_version={version!r}; this version reads {FORMAT_VERSION}")
    try:
        return MythosConfig.from_any(fields)
    except ValueError as error:
        raise ValueError(f"{files[CONFIG]}: {error}") from None


def _open(path: Path, files: dict[str, Path], names: list[str], checkpoint: str | None, stack: ExitStack) -> Source:
    """Open all files before the first tensor is read, so that a concurrent save cannot mix two checkpoints."""
    info: dict[str, Info] = {}
    owner: dict[str, object] = {}
    for name in names:
        handle, found = _open_file(files[name], stack)
        if checkpoint is not None and (handle.metadata() or {}).get("checkpoint") != checkpoint:
            raise ValueError(f"{files[name]}: belongs to another checkpoint than the index that names it")
        info |= found
        owner |= dict.fromkeys(found, handle)
    return Source(str(path), info, lambda name: owner[name].get_tensor(name), mapped=True)


def _open_file(path: Path, stack: ExitStack) -> tuple[object, dict[str, Info]]:
    try:
        handle = stack.enter_context(safe_open(path, framework="pt"))
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: is damaged, truncated or not a safetensors file ({error})") from None
    info = {}
    for name, part in slices.items():
        if part.get_dtype() not in _DTYPES:
            raise ValueError(f"{path}: {name} is {part.get_dtype()}; weights are {', '.join(_DTYPES)}")
        info[name] = Info(tuple(part.get_shape()), _DTYPES[part.get_dtype()])
    return handle, info
