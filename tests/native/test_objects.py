"""Every kernel compiles for every architecture, without spills, within limits, and matches the golden table."""

from __future__ import annotations

import pytest

from tests import golden
from tests.native import build
from tools import building, code_objects, device_code

# Compiled in every run; the others are slow.
QUICK = {("rms_norm", arch) for arch in build.ARCHS} | {("loop_step", "gfx1151"), ("loop_step", "sm_90a")}
CASES = [
    pytest.param(op, arch, id=f"{op}-{arch}", marks=[] if (op, arch) in QUICK else [pytest.mark.slow])
    for op in device_code.ops()
    for arch in build.ARCHS
]


@pytest.mark.parametrize(("op", "arch"), CASES)
def test_compiles_to_the_golden_table(op: str, arch: str) -> None:
    reason = building.missing_device_compiler(arch)
    if reason:
        pytest.skip(reason)
    path, said = building.device_object(op, arch)
    found = build.rows(op, arch)
    assert "(C75" not in said, f"ptxas makes wgmma wait where the source does not: {said}"
    assert [row["kernel"] for row in found] == code_objects.kernels_of(path)
    assert code_objects.arch_of(path) == arch.removesuffix("a")
    for row in found:
        assert row["spills"] == 0, f"{row['kernel']} spills {row['spills']} for {arch}"
        assert row["shared"] <= build.LDS_BYTES, row["kernel"]
    if arch.startswith("gfx"):
        assert {kernel.wave for kernel in code_objects.amd_facts(path.read_bytes()).values()} == {32}
    table, vendor = golden.read("cpp", op), build.vendor(arch)
    if table.compilers[vendor] != build.compiler_version(arch):
        pytest.skip(f"the table was made by {table.compilers[vendor]}; nothing spills here either")
    assert found == table.compiled[arch][op], f"{op} for {arch} changed: python -m tests.golden cpp/{op}"


def test_every_op_has_a_table_and_no_other() -> None:
    assert golden.ops("cpp") == device_code.ops()


each_op = pytest.mark.parametrize("op", device_code.ops())


@each_op
def test_every_architecture_has_the_same_kernels(op: str) -> None:
    table = golden.read("cpp", op)
    assert sorted(table.compiled) == sorted(build.ARCHS)
    assert len({tuple(row["kernel"] for _, row in table.rows(arch)) for arch in build.ARCHS}) == 1


@each_op
def test_every_gfx1151_kernel_has_been_executed(op: str) -> None:
    table = golden.read("cpp", op)
    for _, row in table.rows("gfx1151"):
        how = "pytest -m slow tests/native -k emulated"
        assert table.record_of(row), f"this build of {row['kernel']} was never executed: {how}"


def test_no_include_but_ours() -> None:
    """Device code includes no SDK's header, so that a compiler alone builds it."""
    for path in [*device_code.headers(), *device_code.sources().values()]:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("#include"):
                assert line in ("#include <stdint.h>", "#include OPENMYTHOS_MMA_HEADER") or '"' in line, (
                    f"{path.name}: {line}"
                )
