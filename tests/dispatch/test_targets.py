"""Which configs a GPU uses: its own, or those of the architecture with the same matrix instructions."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from openmythos.triton_kernels import aot, configs
from openmythos.triton_kernels.launch import TARGETS, Launch, Target, executing
from tests.aot.specimens import load

NEAREST = {
    "sm80": ("sm80", "sm86", "sm87", "sm89", "sm120", "sm121"),
    "sm90": ("sm90",),
    "sm100": ("sm100", "sm103", "sm110"),
    "gfx1151": ("gfx1151", "gfx1100", "gfx1101", "gfx1150", "gfx1200", "gfx1201"),
}
SIZES = {"width": 2048, "rows": 64, "bytes": 2}
PAIRS = [(own, arch) for own, archs in NEAREST.items() for arch in archs]


def test_every_file_is_somebodys_nearest() -> None:
    assert set(NEAREST) == set(TARGETS)
    assert all(own in archs for own, archs in NEAREST.items())


@pytest.mark.parametrize(("own", "arch"), PAIRS)
def test_takes_the_nearest_ones_configs(own: str, arch: str) -> None:
    assert configs.nearest(arch) == own
    for kernel in ("loop_step", "rms_norm"):
        assert configs.config(kernel, Target(arch, 40), **SIZES) == configs.config(kernel, TARGETS[own], **SIZES)


@pytest.mark.parametrize("arch", configs.SMALL_SHARED)
def test_tiles_are_cut_where_shared_memory_is_small(arch: str) -> None:
    stages = {"sm80": 0, arch: 0}
    for kernel in configs.kernels("sm80"):
        for index in range(len(configs.all_configs(kernel, "sm80"))):
            with configs.pinned({kernel: index}):
                mine, theirs = configs.config(kernel, Target(arch, 40)), configs.config(kernel, TARGETS["sm80"])
            want = dict(theirs.constexprs)
            if kernel == "mla_decode":
                want["BLOCK_M"] = min(want["BLOCK_M"], configs.SMALL_ABSORBED_ROWS)
            assert mine.constexprs == want
            for name, chosen in ((arch, mine), ("sm80", theirs)):
                stages[name] = max(stages[name], chosen.options.get("num_stages", 0))
    assert stages["sm80"] > stages[arch] == configs.SMALL_STAGES


@pytest.mark.slow
@pytest.mark.parametrize("op", load())
def test_everything_fits_into_99_kilobytes(op: str) -> None:
    target, shared = Target("sm86", 84), {}

    def run(launch: Launch) -> None:
        key = (
            launch.kernel,
            aot.label(launch),
            tuple(arg.dtype for arg in launch.args if isinstance(arg, torch.Tensor)),
        )
        if key not in shared:
            shared[key] = aot.compile_launch(launch, target).metadata.shared

    for specimen in load()[op]:
        with executing(target, run):
            specimen.call(*specimen.inputs("meta", *specimen.real))
    assert max(shared.values()) <= 99 * 1024
