"""Every kernel compiles for every architecture, without spills, within limits, and matches the golden table."""

from __future__ import annotations

import pytest

from tests.native import golden
from tools import building, code_objects, device_code

# Compiled in every run; the others are slow.
QUICK = {("rms_norm", arch) for arch in golden.ARCHS} | {("loop_step", "gfx1151"), ("loop_step", "sm_90a")}
CASES = [
    pytest.param(op, arch, id=f"{op}-{arch}", marks=[] if (op, arch) in QUICK else [pytest.mark.slow])
    for op in device_code.ops()
    for arch in golden.ARCHS
]


@pytest.mark.parametrize(("op", "arch"), CASES)
def test_compiles_to_the_golden_table(op: str, arch: str) -> None:
    reason = building.missing_device_compiler(arch)
    if reason:
        pytest.skip(reason)
    path, said = building.device_object(op, arch)
    found = golden.facts(op, arch)
    assert "(C75" not in said, f"ptxas makes wgmma wait where the source does not: {said}"
    assert sorted(found) == code_objects.kernels_of(path)
    assert code_objects.arch_of(path) == arch.removesuffix("a")
    for kernel, row in found.items():
        assert row["spills"] == 0, f"{kernel} spills {row['spills']} for {arch}"
        assert row["shared"] <= golden.LDS_BYTES, kernel
    if arch.startswith("gfx"):
        assert {kernel.wave for kernel in code_objects.amd_facts(path.read_bytes()).values()} == {32}
    table = golden.read(op)
    vendor = "rocm" if arch.startswith("gfx") else "cuda"
    if table["compilers"][vendor] != golden.compiler_version(arch):
        pytest.skip(f"the table was made by {table['compilers'][vendor]}; nothing spills here either")
    for kernel, row in found.items():
        assert table[arch].get(kernel) == row, f"{kernel} for {arch} changed: python -m tests.native.golden"


def test_every_op_has_a_table_and_no_other() -> None:
    for folder in (golden.GOLDEN, golden.EXECUTED):
        assert sorted(path.name for path in folder.iterdir()) == [f"{op}.json" for op in device_code.ops()]


each_op = pytest.mark.parametrize("op", device_code.ops())


@each_op
def test_every_architecture_has_the_same_kernels(op: str) -> None:
    table = golden.read(op)
    assert sorted(table) == sorted(["compilers", *golden.ARCHS])
    assert len({tuple(sorted(table[arch])) for arch in golden.ARCHS}) == 1


@each_op
def test_every_gfx1151_kernel_has_been_executed(op: str) -> None:
    executed = golden.read(op, golden.EXECUTED)
    for kernel, row in golden.read(op)["gfx1151"].items():
        record = executed.get(row["sha256"], {}).get(kernel)
        assert record, f"this build of {kernel} was never executed: pytest -m slow tests/native -k emulated"


def test_no_include_but_ours() -> None:
    """Device code includes no SDK's header, so that a compiler alone builds it."""
    for path in [*device_code.headers(), *device_code.sources().values()]:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("#include"):
                assert line in ("#include <stdint.h>", "#include OPENMYTHOS_MMA_HEADER") or '"' in line, (
                    f"{path.name}: {line}"
                )
