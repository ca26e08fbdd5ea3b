"""save and load restore every bit, in one file or many, across configs, dtypes and heads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import openmythos
from tests.io.checkpoints import ATTENTION, DTYPES, assert_same, model_of, weights
from tests.models import config, tokens


@pytest.mark.parametrize("shard", [5 * 2**30, 20_000, 1], ids=["one-file", "shards", "tensor-a-shard"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("attn_type", ATTENTION)
def test_round_trip(tmp_path: Path, attn_type: str, dtype: torch.dtype, shard: int) -> None:
    model = model_of(attn_type, dtype)
    openmythos.save(model, tmp_path / "a" / "b", max_shard_bytes=shard)
    loaded = openmythos.load(tmp_path / "a" / "b")
    assert_same(loaded, weights(model))
    assert loaded.head.weight is loaded.embed.weight
    assert loaded.cfg == model.cfg
    ids = tokens(2, 9)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids), model(ids))


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_rank": 0},
        {"n_shared_experts": 0},
        {"prelude_layers": 0, "coda_layers": 0},
        {"n_experts": 1, "n_experts_per_tok": 1},
    ],
    ids=lambda changes: "-".join(f"{name}={value}" for name, value in changes.items()),
)
def test_round_trip_of_odd_configs(tmp_path: Path, changes: dict[str, int]) -> None:
    model = model_of(**changes)
    openmythos.save(model, tmp_path)
    assert_same(openmythos.load(tmp_path), weights(model))


def test_files_have_upstream_names_and_the_hugging_face_index(tmp_path: Path) -> None:
    model = model_of()
    openmythos.save(model, tmp_path, max_shard_bytes=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    expected = {name: value for name, value in weights(model).items() if name != "head.weight"}
    assert list(index["weight_map"]) == list(expected)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in expected.values())
    found = {}
    for name in files:
        part = load_file(tmp_path / name)
        assert sum(value.nbytes for value in part.values()) <= 20_000 or len(part) == 1
        assert all(index["weight_map"][key] == name for key in part)
        found |= part
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert json.loads((tmp_path / "config.json").read_text()) == {"format_version": 1, **model.cfg.to_dict()}


def test_one_file_is_plain_safetensors(tmp_path: Path) -> None:
    model = model_of()
    openmythos.save(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "head.weight" not in file.keys()  # noqa: SIM118  (not a dict)
    assert_same(openmythos.load(tmp_path / "model.safetensors"), weights(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_load_casts_on_the_way(tmp_path: Path, dtype: torch.dtype) -> None:
    model = model_of()
    openmythos.save(model, tmp_path)
    assert_same(
        openmythos.load(tmp_path, dtype=dtype), {name: value.to(dtype) for name, value in weights(model).items()}
    )


@pytest.mark.parametrize("loops", [2, 4, 7])
@pytest.mark.parametrize("length", [11, 40, 63])
def test_load_across_sequence_lengths_and_loops(tmp_path: Path, length: int, loops: int) -> None:
    model = model_of()
    openmythos.save(model, tmp_path)
    other = dataclasses.replace(model.cfg, max_seq_len=length, max_loop_iters=loops)
    loaded = openmythos.load(tmp_path, config=other).eval()
    through_torch = openmythos.OpenMythos(other).eval()
    through_torch.load_state_dict(model.state_dict())
    assert_same(loaded, weights(through_torch))
    scale, expected = loaded.recurrent.lora.scale, model.recurrent.lora.scale.weight
    assert scale.num_embeddings == loops
    for row in range(loops):
        assert torch.equal(scale.weight[row], expected[min(row, 3)])
    assert loaded.rope.shape[0] == length
    ids = tokens(1, 9)
    with torch.no_grad():
        assert torch.equal(loaded(ids, n_loops=2), model(ids, n_loops=2))


def test_a_config_of_another_shape_is_one_error_with_all_names(tmp_path: Path) -> None:
    openmythos.save(model_of(), tmp_path)
    with pytest.raises(ValueError, match="does not fit the config") as error:
        openmythos.load(tmp_path, config=config(expert_dim=21, coda_layers=2))
    text = str(error.value)
    for part in (
        "missing: coda.1.attn_norm.weight",
        "mis-shaped:",
        "routed_experts.0.gate.weight (19, 48)",
        "(21, 48)",
    ):
        assert part in text


def test_not_strict_takes_what_is_there(tmp_path: Path) -> None:
    model = model_of(prelude_layers=2)
    openmythos.save(model, tmp_path)
    loaded = openmythos.load(tmp_path, config=config(coda_layers=2), strict=False)
    ours, theirs = weights(loaded), weights(model)
    for name, value in ours.items():
        if name in theirs:
            assert torch.equal(value, theirs[name]), name
    assert torch.equal(loaded.coda[1].attn_norm.weight, torch.ones(48))
    assert loaded.coda[1].attn.wo.weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_an_untied_head_stays_untied(tmp_path: Path) -> None:
    model = model_of()
    model.head.weight = torch.nn.Parameter(torch.randn(101, 48))
    openmythos.save(model, tmp_path)
    loaded = openmythos.load(tmp_path)
    assert torch.equal(loaded.head.weight, model.head.weight)
    assert torch.equal(loaded.embed.weight, model.embed.weight)
    assert loaded.head.weight is not loaded.embed.weight


def test_a_loaded_model_owns_its_memory_and_trains(tmp_path: Path) -> None:
    openmythos.save(model_of(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    loaded = openmythos.load(tmp_path)
    loaded(tokens(2, 5)).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.fill_(7.0)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_saving_over_the_folder_it_came_from(tmp_path: Path) -> None:
    model = model_of()
    openmythos.save(model, tmp_path, max_shard_bytes=20_000)
    (tmp_path / "notes.txt").write_text("mine")
    loaded = openmythos.load(tmp_path)
    with torch.no_grad():
        loaded.norm.weight.add_(1)
    openmythos.save(loaded, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]
    assert_same(openmythos.load(tmp_path), weights(loaded))
    openmythos.save(model, tmp_path, max_shard_bytes=50_000)
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(openmythos.load(tmp_path), weights(model))


def test_an_upstream_model_can_be_saved(tmp_path: Path) -> None:
    from tests.upstream.oracle import pair

    theirs, ours = pair()
    openmythos.save(theirs, tmp_path)
    assert_same(openmythos.load(tmp_path), weights(ours))


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "1"], ids=repr)
def test_max_shard_bytes_is_checked(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="max_shard_bytes="):
        openmythos.save(model_of(), tmp_path / "new", max_shard_bytes=value)
    assert not (tmp_path / "new").exists()


def test_a_model_without_memory_is_not_saved(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = openmythos.OpenMythos(config())
    with pytest.raises(ValueError, match="on the meta device"):
        openmythos.save(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.int8}, "dtype=torch.int8: allowed are"),
        ({"device": "meta"}, "device='meta'"),
        pytest.param(
            {"device": "cuda"},
            "torch.cuda.is_available",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
    ids=["dtype", "meta", "cuda"],
)
def test_load_checks_its_arguments(tmp_path: Path, options: dict[str, object], message: str) -> None:
    openmythos.save(model_of(), tmp_path)
    with pytest.raises(ValueError, match=message):
        openmythos.load(tmp_path, **options)


@pytest.mark.gpu
def test_load_to_the_gpu(tmp_path: Path) -> None:
    model = model_of()
    openmythos.save(model, tmp_path)
    loaded = openmythos.load(tmp_path, device="cuda", dtype=torch.bfloat16)
    assert all(parameter.is_cuda for parameter in loaded.parameters())
    assert_same(loaded.cpu(), {name: value.bfloat16() for name, value in weights(model).items()})
