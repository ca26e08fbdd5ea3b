"""The dispatch table: order, names, refusals, and what explain says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import openmythos
from openmythos import dispatch, ops
from openmythos.backends import library
from tests.backends import isa_variants

X, WEIGHT = torch.randn(5, 97), torch.ones(97)
CALL = dispatch.contract("rms_norm")(X, WEIGHT, 1e-6)


def call(**options: object) -> torch.Tensor:
    with torch.no_grad():
        return ops.rms_norm(X, WEIGHT, **options)


def test_every_op_ends_with_the_reference() -> None:
    for op in dispatch.ops():
        listed = dispatch.entries(op, "cpu")
        assert listed[-1].name == "reference"
        assert listed[-1].supports(()) is None


def test_the_first_entry_that_supports_the_call_serves_it() -> None:
    first = next(entry for entry in dispatch.entries("rms_norm", "cpu") if entry.supports(CALL) is None)
    with dispatch.record() as counts:
        call()
    assert dict(counts) == {("rms_norm", first.name): 1}


def test_use_backend_and_the_keyword() -> None:
    with dispatch.record() as counts:
        with openmythos.use_backend("reference"):
            call()
        call(backend="reference")
    assert dict(counts) == {("rms_norm", "reference"): 2}


def test_the_innermost_use_backend_wins_and_is_undone_after_an_error() -> None:
    with dispatch.record() as counts, openmythos.use_backend("triton"), openmythos.use_backend("reference"):
        call()
    assert dict(counts) == {("rms_norm", "reference"): 1}
    with pytest.raises(KeyError), openmythos.use_backend("reference"):
        raise KeyError
    with dispatch.record() as counts:
        call()
    assert list(counts) != [("rms_norm", "triton")]


def test_unknown_and_missing_backends_raise() -> None:
    with pytest.raises(ValueError, match=r"name='fast'.*reference"), openmythos.use_backend("fast"):
        pass
    with openmythos.use_backend("triton"), pytest.raises(openmythos.BackendError, match=r"triton.*cpu"):
        call()


def test_nothing_falls_back_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise OSError("from the kernel")

    monkeypatch.setitem(dispatch._table, ("rms_norm", "cpu"), [dispatch.Entry("cpp", fail, lambda _call: None)])
    with pytest.raises(OSError, match="from the kernel"):
        call()


def test_explain_says_why_for_every_row() -> None:
    decisions = dispatch.explain("rms_norm", X.half(), WEIGHT.half(), 1e-6)
    assert [part.backend for part in decisions] == [entry.name for entry in dispatch.entries("rms_norm", "cpu")]
    assert [part.backend for part in decisions if part.chosen] == ["reference"]
    assert all(part.reason for part in decisions)
    with openmythos.use_backend("reference"):
        forced = dispatch.explain("rms_norm", X, WEIGHT, 1e-6)
    assert forced[-1] == dispatch.Decision("reference", True, "selected by name")
    with pytest.raises(ValueError, match="op='norm'"):
        dispatch.explain("norm")


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [("reference", 0, ""), ("", 0, ""), ("fast", 1, "OPENMYTHOS_BACKEND='fast': allowed are")],
)
def test_environment_variable(value: str, code: int, message: str) -> None:
    script = (
        "import torch, openmythos\n"
        "with openmythos.record() as counts, torch.no_grad():\n"
        "    openmythos.RMSNorm(8)(torch.ones(2, 8))\n"
        "print(list(counts))"
    )
    environment = {**os.environ, "OPENMYTHOS_BACKEND": value, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    if value == "reference":
        assert "('rms_norm', 'reference')" in done.stdout


@pytest.mark.skipif(library.missing() is not None, reason=f"no native library: {library.missing()}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_cpp_kernels_serve_the_model(dtype: torch.dtype) -> None:
    """An entry that wrongly refuses calls would leave its kernels untested."""
    from tests.models import small_model, tokens

    model = small_model().to(dtype)
    with dispatch.record() as counts, torch.no_grad():
        model.generate(tokens(2, 5), 3, 2)
    served = {op: {backend for name, backend in counts if name == op} for op, _ in counts}
    for op in (
        "rms_norm",
        "rms_norm_add",
        "rope",
        "linear",
        "moe_route",
        "moe_experts",
        "mla_absorbed",
        "mla_decompressed",
        "loop_step_",
    ):
        assert served[op] == {"cpp"}, f"{op}: {served[op]}"
    assert isa_variants()


def test_recording_counts_gradients_too() -> None:
    x = X.clone().requires_grad_()
    with dispatch.record() as counts:
        ops.rms_norm(x, WEIGHT).sum().backward()
    assert {op for op, _ in counts} == {"rms_norm", "rms_norm_backward"}
