"""Upstream's training checkpoints: read with their config, without running any code from the file."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

import openmythos
from openmythos.io import read_training_checkpoint
from tests.io.checkpoints import ATTENTION, assert_same, model_of, weights
from tests.models import config, tokens
from tests.upstream.oracle import pair


def write(path: Path, source: torch.nn.Module, **changes: object) -> None:
    """A file as upstream's training script writes it."""
    content = {
        "step": 7,
        "model": source.state_dict(),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 3e-4, "params": [0]}]},
        "cfg": source.cfg,
        "vocab_size": source.cfg.vocab_size,
    }
    torch.save(content | changes, path)


class Malicious:
    """Pickles as a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


class Hidden:
    """Pickles as a harmless-looking call with another call inside."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return eval, (f"__import__('os').mkdir({str(self.path)!r})",)


@pytest.mark.parametrize("load", [openmythos.load_training_checkpoint, openmythos.load], ids=["direct", "delegated"])
@pytest.mark.parametrize("attn_type", ATTENTION)
def test_upstream_checkpoint(tmp_path: Path, attn_type: str, load: object) -> None:
    theirs, ours = pair(attn_type)
    write(tmp_path / "step_0000007.pt", theirs)
    loaded = load(tmp_path / "step_0000007.pt")
    assert_same(loaded, weights(ours))
    assert loaded.cfg == ours.cfg
    assert loaded.head.weight is loaded.embed.weight
    ids = tokens(2, 9)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids), ours(ids))


def test_all_parts_are_read(tmp_path: Path) -> None:
    theirs, ours = pair()
    write(tmp_path / "a.pt", theirs)
    checkpoint = read_training_checkpoint(tmp_path / "a.pt")
    assert (checkpoint.step, checkpoint.vocab_size, checkpoint.config) == (7, 101, ours.cfg)
    assert torch.equal(checkpoint.optimizer["state"][0]["exp_avg"], torch.ones(3))
    assert checkpoint.optimizer["param_groups"] == [{"lr": 3e-4, "params": [0]}]
    assert list(checkpoint.model) == list(theirs.state_dict())


@pytest.mark.parametrize("name", ["open_mythos.main", "open_mythos", "openmythos.config"])
def test_config_pickled_under_any_of_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    theirs, ours = pair()
    fields = type(theirs.cfg) if name.startswith("open_mythos") else openmythos.MythosConfig
    monkeypatch.setattr(fields, "__module__", name)
    write(tmp_path / "a.pt", theirs, cfg=fields(**ours.cfg.to_dict()))
    assert name.encode() + b"\nMythosConfig" in (tmp_path / "a.pt").read_bytes()
    monkeypatch.undo()
    assert_same(openmythos.load(tmp_path / "a.pt"), weights(ours))


def test_our_own_training_checkpoint(tmp_path: Path) -> None:
    model = model_of()
    write(tmp_path / "a.pt", model)
    assert_same(openmythos.load(tmp_path / "a.pt"), weights(model))


def test_stacked_names_are_read_too(tmp_path: Path) -> None:
    model = model_of()
    bias = {"recurrent.block.ffn.router_bias": model.recurrent.block.ffn.router_bias}
    torch.save({**dict(model.named_parameters()), **bias}, tmp_path / "a.pt")
    assert_same(openmythos.load(tmp_path / "a.pt", config=model.cfg), weights(model))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old-format"])
def test_bare_state_dict_needs_a_config(tmp_path: Path, zipped: bool) -> None:
    theirs, ours = pair()
    torch.save(theirs.state_dict(), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"a.pt: is a state dict without a config"):
        openmythos.load(tmp_path / "a.pt")
    assert_same(openmythos.load(tmp_path / "a.pt", config=theirs.cfg), weights(ours))


def test_casts_and_another_config(tmp_path: Path) -> None:
    theirs, ours = pair()
    write(tmp_path / "a.pt", theirs)
    loaded = openmythos.load(tmp_path / "a.pt", dtype=torch.bfloat16, config=config(max_loop_iters=6, max_seq_len=21))
    assert loaded.rope.shape[0] == 21
    rows = loaded.recurrent.lora.scale.weight
    expected = ours.recurrent.lora.scale.weight.bfloat16()
    assert torch.equal(rows, torch.cat((expected, expected[-1:], expected[-1:])))
    assert torch.equal(loaded.recurrent.block.ffn.gate_up, ours.recurrent.block.ffn.gate_up.bfloat16())


def test_an_untied_head_stays_untied(tmp_path: Path) -> None:
    theirs, _ = pair()
    theirs.head.weight = torch.nn.Parameter(torch.randn(101, 48))
    write(tmp_path / "a.pt", theirs)
    loaded = openmythos.load(tmp_path / "a.pt")
    assert torch.equal(loaded.head.weight, theirs.head.weight)
    assert torch.equal(loaded.embed.weight, theirs.embed.weight)


def test_missing_and_unexpected_keys_are_one_error(tmp_path: Path) -> None:
    theirs, _ = pair()
    state = theirs.state_dict()
    state["extra.weight"] = state.pop("norm.weight")
    write(tmp_path / "a.pt", theirs, model=state)
    with pytest.raises(ValueError, match=r"1 missing: norm.weight; 1 unexpected: extra.weight"):
        openmythos.load(tmp_path / "a.pt")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old-format"])
@pytest.mark.parametrize("place", ["cfg", "optimizer", "model"])
@pytest.mark.parametrize("kind", [Malicious, Hidden])
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, kind: type, place: str, zipped: bool) -> None:
    theirs, _ = pair()
    made = tmp_path / "made"
    content = {"step": 1, "model": theirs.state_dict(), "cfg": theirs.cfg, place: kind(made)}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"a.pt: not loaded"):
        openmythos.load_training_checkpoint(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a.pt: not loaded"):
        openmythos.load(tmp_path / "a.pt")
    assert not made.exists()
    with open(tmp_path / "plain.pkl", "wb") as file:
        pickle.dump(kind(made), file)
    pickle.loads((tmp_path / "plain.pkl").read_bytes())
    assert made.exists(), "the same object does run its code where pickles are trusted"


def test_a_malicious_pickle_names_what_it_asks_for(tmp_path: Path) -> None:
    theirs, _ = pair()
    write(tmp_path / "a.pt", theirs, cfg=Malicious(tmp_path / "made"))
    with pytest.raises(ValueError, match=r"asks for (posix|nt).mkdir; .* no code of a file is run"):
        openmythos.load(tmp_path / "a.pt")


@pytest.mark.parametrize("value", [torch.ones(2), [4], {"a": 1}], ids=["tensor", "list", "dict"])
def test_a_config_of_odd_values_is_an_error(tmp_path: Path, value: object) -> None:
    theirs, _ = pair()
    theirs.cfg.rope_theta = value
    write(tmp_path / "a.pt", theirs)
    with pytest.raises(ValueError, match=r"a.pt: its config has rope_theta of type"):
        openmythos.load(tmp_path / "a.pt")


@pytest.mark.parametrize("keep", [0, 3, 50, 0.5, 0.999], ids=["empty", "3-bytes", "50-bytes", "half", "end-missing"])
def test_a_truncated_file_is_named(tmp_path: Path, keep: float) -> None:
    theirs, _ = pair()
    write(tmp_path / "a.pt", theirs)
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(ValueError, match=r"a.pt: (is damaged|not loaded)"):
        openmythos.load(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [([1, 2], "holds a list"), ({}, "holds nothing"), ({"a": 1}, "entries that are no tensors: a")],
    ids=["list", "empty", "number"],
)
def test_other_files_are_named(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"a.pt: .*{message}"):
        openmythos.load(tmp_path / "a.pt", config=config())


def test_nothing_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a.pt: there is no such file"):
        openmythos.load_training_checkpoint(tmp_path / "a.pt")
