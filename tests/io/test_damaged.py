"""Damaged, incomplete and foreign files raise an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import openmythos
from tests.io.checkpoints import model_of, weights

FIRST = "model-00001-of-00003.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    model = model_of()
    total = sum(value.nbytes for name, value in weights(model).items() if name != "head.weight")
    openmythos.save(model, tmp_path, max_shard_bytes=total // 3 + 8_000)
    assert (tmp_path / FIRST).exists()
    return tmp_path


def truncate(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize("keep", [0, 4, 100, -1], ids=["empty", "no-length", "half-header", "one-byte-short"])
def test_a_truncated_shard_is_named(sharded: Path, keep: int) -> None:
    truncate(sharded / FIRST, keep)
    with pytest.raises(ValueError, match=rf"{FIRST}: is damaged, truncated or not a safetensors file"):
        openmythos.load(sharded)


def test_a_corrupted_header_is_named(sharded: Path) -> None:
    content = bytearray((sharded / FIRST).read_bytes())
    content[8:12] = b"\xff\xfe\xfd\xfc"
    (sharded / FIRST).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{FIRST}: is damaged"):
        openmythos.load(sharded)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / FIRST).unlink()
    with pytest.raises(FileNotFoundError, match=rf"names {FIRST}, which is not beside it"):
        openmythos.load(sharded)


def test_a_shard_of_another_checkpoint_is_named(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    model = model_of(seed=5)
    total = sum(value.nbytes for name, value in weights(model).items() if name != "head.weight")
    openmythos.save(model, other, max_shard_bytes=total // 3 + 8_000)
    (sharded / FIRST).write_bytes((other / FIRST).read_bytes())
    with pytest.raises(ValueError, match=rf"{FIRST}: belongs to another checkpoint"):
        openmythos.load(sharded)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", [b"", b"{4", b"\xff\x00", b"[1]"], ids=["empty", "half", "binary", "list"])
def test_damaged_json_is_named(sharded: Path, name: str, content: bytes) -> None:
    (sharded / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: (is not readable JSON|holds a list)"):
        openmythos.load(sharded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version=2"),
        ({"dimm": 48}, r"unknown fields \['dimm'\]"),
        ({"n_experts": 0}, "n_experts=0"),
    ],
    ids=["version", "unknown", "invalid"],
)
def test_a_config_that_cannot_be_read_is_named(sharded: Path, change: dict[str, int], message: str) -> None:
    fields = json.loads((sharded / "config.json").read_text())
    (sharded / "config.json").write_text(json.dumps(fields | change))
    with pytest.raises(ValueError, match=rf"config.json: .*{message}"):
        openmythos.load(sharded)


def test_an_index_cannot_leave_its_folder(sharded: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../secret.safetensors")
    path.write_text(json.dumps(index))
    (sharded.parent / "secret.safetensors").write_bytes((sharded / FIRST).read_bytes())
    with pytest.raises(FileNotFoundError, match="which is not beside it"):
        openmythos.load(sharded)


def test_nothing_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such file or folder"):
        openmythos.load(tmp_path / "nowhere")
    (tmp_path / "step_0000100.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"holds neither .*it holds step_0000100.pt"):
        openmythos.load(tmp_path)


def test_a_file_without_config_asks_for_one(tmp_path: Path) -> None:
    model = model_of()
    openmythos.save(model, tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json: is not there; give the model's config with config="):
        openmythos.load(tmp_path)
    loaded = openmythos.load(tmp_path, config=model.cfg.to_dict())
    assert torch.equal(loaded.recurrent.block.ffn.gate_up, model.recurrent.block.ffn.gate_up)


def test_experts_of_two_dtypes_need_a_choice(tmp_path: Path) -> None:
    model = model_of()
    state = {name: value for name, value in weights(model).items() if name != "head.weight"}
    key = "recurrent.block.ffn.routed_experts.2.down.weight"
    state[key] = state[key].bfloat16()
    save_file(state, tmp_path / "mixed.safetensors")
    with pytest.raises(ValueError, match=r"routed_experts.2.down.weight is torch.bfloat16; experts share one dtype"):
        openmythos.load(tmp_path / "mixed.safetensors", config=model.cfg)
    loaded = openmythos.load(tmp_path / "mixed.safetensors", config=model.cfg, dtype=torch.float32)
    assert torch.equal(loaded.state_dict()[key], state[key].float())


def test_integers_are_no_weights(tmp_path: Path) -> None:
    model = model_of()
    state = {name: value for name, value in weights(model).items() if name != "head.weight"}
    save_file(state | {"norm.weight": torch.ones(48, dtype=torch.int32)}, tmp_path / "ints.safetensors")
    with pytest.raises(ValueError, match=r"ints.safetensors: norm.weight is I32; weights are"):
        openmythos.load(tmp_path / "ints.safetensors", config=model.cfg)
