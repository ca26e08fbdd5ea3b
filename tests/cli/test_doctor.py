"""The doctor reports what dispatch does, and does not fail on a broken installation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from openmythos import dispatch, doctor
from openmythos.backends import library
from openmythos.cli import main
from openmythos.samples import samples

ROOT = Path(__file__).parents[2]
CASES = [
    pytest.param(dtype, *shape, id=f"{str(dtype).removeprefix('torch.')}-{call}")
    for dtype in doctor.DTYPES
    for call, shape in doctor.CALLS.items()
]


def test_every_op_has_a_sample() -> None:
    assert sorted(samples(torch.float32, "cpu", 1, 4)) == dispatch.ops()


@pytest.mark.parametrize(("dtype", "tokens", "past"), CASES)
def test_the_backend_named_is_the_one_that_serves(dtype: torch.dtype, tokens: int, past: int) -> None:
    for op, call in samples(dtype, "cpu", tokens, past).items():
        named = [choice.backend for choice in dispatch.explain(op, call) if choice.chosen]
        with dispatch.record() as served:
            results = dispatch.select(op, "cpu", call)(call)
        # the op is recorded first, then the ops that it calls
        assert next(iter(served)) == (op, named[0]), op
        # the reference of routed and shared experts dispatches the routed ones separately
        in_parts = (op, named[0]) == ("moe_experts", "reference")
        assert served[op, named[0]] == (2 if in_parts else 1), op
        for result in results if isinstance(results, tuple) else (results,):
            assert result is None or not result.isnan().any(), op


def test_json_has_every_op_dtype_and_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    cpu = [record for record in report["dispatch"] if record["device"] == "cpu"]
    seen = {(record["op"], record["dtype"], record["call"]) for record in cpu}
    assert len(seen) == len(cpu) == len(dispatch.ops()) * len(doctor.DTYPES) * len(doctor.CALLS)
    for record in cpu:
        names = [entry.name for entry in dispatch.entries(record["op"], "cpu")]
        assert sorted([record["chosen"], *record["rejected"]]) == sorted(names)
    assert report["versions"]["torch"] == torch.__version__


def test_tables_are_plain_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    for op in dispatch.ops():
        assert f"| {op} " in text


def test_forced_backend_is_explained() -> None:
    with dispatch.use_backend("reference"):
        records = doctor._decisions()
    assert {record["chosen"] for record in records} == {"reference"}
    assert any("use_backend selects 'reference'" in text for record in records for text in record["rejected"].values())


def test_forced_backend_without_entries_serves_nothing() -> None:
    with dispatch.use_backend("triton"):
        records = [record for record in doctor._decisions() if record["device"] == "cpu"]
        with pytest.raises(dispatch.BackendError, match="serves no op on cpu"):
            dispatch.select("rope", "cpu", samples(torch.float32, "cpu", 1, 4)["rope"])
    assert {record["chosen"] for record in records} == {None}
    reasons = {reason for record in records for reason in record["rejected"].values()}
    assert reasons == {"'triton' was selected and serves no op on cpu, so the call raises"}


def test_missing_library_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(library, "missing", lambda: "the native library is not built (do this)")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "missing: the native library is not built (do this)" in text
    assert "plain PyTorch serves every op" in text


@pytest.mark.parametrize(
    ("name", "value", "reported"),
    [
        pytest.param("OPENMYTHOS_BACKEND", "warp", "OPENMYTHOS_BACKEND='warp'", id="backend"),
        pytest.param("OPENMYTHOS_CPU_ISA", "mmx", "OPENMYTHOS_CPU_ISA: mmx", id="isa"),
        pytest.param("OPENMYTHOS_SPEED", "11", "11 (no such variable)", id="unknown variable"),
    ],
)
def test_wrong_environment_is_reported_without_a_traceback(name: str, value: str, reported: str) -> None:
    environment = {**os.environ, name: value, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "openmythos.cli", "doctor"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert reported in done.stdout


@pytest.mark.parametrize(
    ("hip", "arch", "value", "warned"),
    [
        pytest.param("7.2", "gfx1151", None, True, id="unset"),
        pytest.param("7.2", "gfx1151:sramecc-:xnack-", "0", True, id="off"),
        pytest.param("7.2", "gfx1151", "1", False, id="on"),
        pytest.param("7.2", "gfx942", None, False, id="another AMD GPU"),
        pytest.param(None, "gfx1151", None, False, id="CUDA"),
    ],
)
def test_slow_attention_on_gfx1151_is_a_warning(
    hip: str | None, arch: str, value: str | None, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(gcnArchName=arch))
    monkeypatch.delenv(doctor.AOTRITON, raising=False)
    if value is not None:
        monkeypatch.setenv(doctor.AOTRITON, value)
    found = doctor._warnings()
    assert (found != "none") == warned
    if warned:
        (sentence,) = found
        assert sentence.startswith("cuda:0, cuda:1: ")
        assert f"{doctor.AOTRITON}=1" in sentence


def test_documented_variables_are_the_known_ones() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    table = text.split("## Choosing")[0]
    assert {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")} == set(doctor.VARIABLES)
