"""Every kernel compiles for every target to what the golden table says, fits, and has been executed for gfx1151.

`python -m tests.golden triton/OP` rewrites the table; a change of it is reviewed like a change of code.
"""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

import triton

from openmythos.triton_kernels import configs
from openmythos.triton_kernels.launch import TARGETS, Target
from tests import golden
from tests.aot.build import build
from tests.aot.specimens import Specimen, load

LDS_BYTES = 65536


def _cases() -> list:
    cases = []
    for op, specimens in load().items():
        seen = set()
        for specimen in specimens:
            marks = [pytest.mark.slow] if specimen.call in seen else []
            seen.add(specimen.call)
            for target in TARGETS.values():
                cases.append(pytest.param(op, specimen, target, id=f"{specimen.name}-{target.arch}", marks=marks))
    return cases


@pytest.mark.parametrize(("op", "specimen", "target"), _cases())
def test_compiles_to_the_golden_table(op: str, specimen: Specimen, target: Target) -> None:
    table = golden.read("triton", op)
    want = table.compiled.get(target.arch, {}).get(specimen.name)
    made_by = f"the table was made by Triton {table.compilers.get('triton')}, this is {triton.__version__}"
    assert build(specimen, target).rows == want, f"python -m tests.golden triton/{op} rewrites the table; {made_by}"


@pytest.mark.parametrize("op", load())
@pytest.mark.parametrize("arch", TARGETS)
def test_nothing_spills(arch: str, op: str) -> None:
    for specimen, row in golden.read("triton", op).rows(arch):
        assert row["spills"] == 0, f"{specimen}: {row['kernel']} spills {row['spills']}"
        if arch == "gfx1151":
            assert row["shared"] <= LDS_BYTES, f"{specimen}: {row['kernel']} needs {row['shared']} bytes of LDS"


@pytest.mark.parametrize("op", load())
def test_every_gfx1151_code_object_has_been_executed(op: str) -> None:
    table = golden.read("triton", op)
    for specimen, row in table.rows("gfx1151"):
        assert table.record_of(row), f"{specimen}: this build of {row['kernel']} was never executed"


@pytest.mark.slow
@pytest.mark.parametrize("arch", TARGETS)
def test_every_config_is_compiled(arch: str) -> None:
    taken: dict[str, set[int]] = {}
    for specimens in load().values():
        for specimen in specimens:
            for kernel, places in build(specimen, TARGETS[arch]).taken.items():
                taken.setdefault(kernel, set()).update(places)
    assert set(taken) == set(configs.kernels(arch))
    for kernel in sorted(taken):
        missing = set(range(len(configs.all_configs(kernel, arch)))) - taken[kernel]
        assert not missing, f"{arch}.json: no specimen takes entries {sorted(missing)} of {kernel}"
