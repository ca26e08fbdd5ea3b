"""Executes every gfx1151 code object of the golden table on the emulator, at a small size, and records it."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from openmythos.triton_kernels import configs
from openmythos.triton_kernels.launch import executing
from tests import golden
from tests.aot.build import Built, build
from tests.aot.specimens import Specimen, load
from tests.cases import check_outputs, listed
from tests.tolerances import errors
from tools import gfx1151_emulator as emulator
from tools.gfx1151_emulator.executor import GFX1151, Executor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulator.missing() is not None, reason=f"{emulator.missing()}"),
]
CASES = [pytest.param(op, specimen, id=specimen.name) for op, specimens in load().items() for specimen in specimens]


def _difference(real: Built, small: Executor) -> str:
    """Which code objects only one of both sizes has."""
    wanted = {row["sha256"]: f"{row['kernel']}: {row['config']}" for row in real.rows}
    found = {run.sha256: f"{run.kernel}: {run.config}" for run in small.executed}
    lines = [f"only at the real size: {wanted[sha]}" for sha in wanted.keys() - found.keys()]
    lines += [f"only at the small size: {found[sha]}" for sha in found.keys() - wanted.keys()]
    hint = "equal lines mean arguments that were specialised differently: name what changes in do_not_specialize"
    return "\n".join([*sorted(lines, key=lambda line: line.split(": ", 1)[1]), hint])


def _pins(taken: dict[str, set[int]]) -> dict[str, int]:
    for kernel, places in taken.items():
        assert len(places) == 1, f"{kernel} takes the entries {sorted(places)} in one specimen: give each its own"
    return {kernel: next(iter(places)) for kernel, places in taken.items()}


@pytest.mark.parametrize(("op", "specimen"), CASES)
def test_runs_on_the_emulator(op: str, specimen: Specimen) -> None:
    real = build(specimen, GFX1151)
    args = specimen.inputs("cpu", *specimen.small)
    executor = Executor()
    with torch.no_grad(), configs.pinned(_pins(real.taken)), executing(GFX1151, executor):
        found = listed(specimen.call(*args))
    assert {run.sha256 for run in executor.executed} == {row["sha256"] for row in real.rows}, _difference(
        real, executor
    )
    truth = check_outputs(specimen.name, found, specimen.reference, args, specimen.dtype)
    worst = max(errors(mine, true).frobenius for mine, true in zip(found, truth, strict=True))
    golden.record(
        "triton",
        op,
        [
            {
                "kernel": run.kernel,
                "config": run.config,
                "sha256": run.sha256,
                "specimen": specimen.name,
                "error": float(f"{worst:.1e}"),
                "instructions": run.instructions,
                "wmma": run.wmma,
            }
            for run in executor.executed
        ],
    )
