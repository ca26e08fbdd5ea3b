"""Writes a model as safetensors in upstream's names, sharded, with the config beside it."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from openmythos.config import MythosConfig
from openmythos.io.folder import replacing
from openmythos.io.progress import bytes_bar
from openmythos.io.weights import EMBED, HEAD, TABLES, Info, Source, expected_shapes, match, meta_model

FORMAT_VERSION = 1
SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
# Bytes for headers, the index and the config, besides the tensors.
_SLACK = 2**20


def save(
    model: nn.Module, folder: str | os.PathLike, *, max_shard_bytes: int = 5 * 2**30, progress: bool = True
) -> None:
    """Write the model's weights and config into `folder`, all or nothing.

    Writes `config.json` and `model.safetensors`, or above `max_shard_bytes` `model-00001-of-0000N.safetensors` with
    Hugging Face's index. Keys, shapes and dtypes are those of upstream's state dict, without the rotary tables, which
    follow from the config, and with a tied head stored once. An existing checkpoint stays readable until the new one
    is complete; other files in the folder stay. Tensors are written one at a time from where they are.

    Raises:
        ValueError: before anything is written, when max_shard_bytes is not positive, or the model's weights do not fit
            its config or have no memory in this process (meta device, sharded over processes).
        OSError: when the disk is full or another process is saving there; the old checkpoint is untouched.
    """
    if not isinstance(max_shard_bytes, int) or isinstance(max_shard_bytes, bool) or max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes={max_shard_bytes!r}: must be an int of at least 1")
    config = MythosConfig.from_any(model.cfg)
    tensors = _tensors(model, config)
    shards = _shards(tensors, max_shard_bytes)
    total = sum(value.nbytes for value in tensors.values())
    with replacing(Path(folder), lambda: total + _SLACK) as staging, bytes_bar("saving", total, progress) as advance:
        _write_json(staging / CONFIG, {"format_version": FORMAT_VERSION, **config.to_dict()})
        if len(shards) == 1:
            _write_shard(staging / SINGLE, shards[0], {"format": "pt"}, advance)
            return
        # One id in all shards and the index, so that files of two checkpoints are never combined.
        metadata = {"format": "pt", "checkpoint": uuid.uuid4().hex}
        where = {}
        for number, shard in enumerate(shards, 1):
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            _write_shard(staging / name, shard, metadata, advance)
            where |= dict.fromkeys(shard, name)
        index = {"metadata": {"total_size": total, "checkpoint": metadata["checkpoint"]}, "weight_map": where}
        _write_json(staging / INDEX, index)


def _tensors(model: nn.Module, config: MythosConfig) -> dict[str, torch.Tensor]:
    """{upstream's key: tensor}, views of the model's own storage."""
    state = {name: value.detach() for name, value in model.state_dict().items() if name not in TABLES}
    if HEAD in state and EMBED in state and state[HEAD].data_ptr() == state[EMBED].data_ptr():
        del state[HEAD]
    for name, value in state.items():
        if value.is_meta or type(value) not in (torch.Tensor, nn.Parameter):
            kind = "on the meta device" if value.is_meta else f"a {type(value).__name__}"
            raise ValueError(
                f"{name} is {kind}: only weights in this process's memory can be saved (sharded models: "
                "torch.distributed.checkpoint)"
            )
    source = Source(
        "the model", {name: Info(tuple(value.shape), value.dtype) for name, value in state.items()}, state.get
    )
    match(expected_shapes(meta_model(config)), source, strict=True)
    return state


def _shards(tensors: dict[str, torch.Tensor], limit: int) -> list[dict[str, torch.Tensor]]:
    """The tensors in order, in groups of at most `limit` bytes; a larger tensor is a group of its own."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, value in tensors.items():
        if shards[-1] and size + value.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
    return shards


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _write_shard(
    path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], advance: Callable[[int], None]
) -> None:
    """The safetensors format: header length (8 bytes, little-endian), JSON header padded to 8, the tensors' bytes.

    Written here because the package's own writer needs all tensors of a file at once, in host memory.
    """
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, value in tensors.items():
        begin, end = end, end + value.nbytes
        header[name] = {
            "dtype": DTYPE_NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in tensors.values():
            file.write(_bytes(value))
            advance(value.nbytes)


def _bytes(value: torch.Tensor) -> memoryview:
    return memoryview(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
