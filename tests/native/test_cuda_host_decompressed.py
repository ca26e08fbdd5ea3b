"""The CUDA source of mla_decompressed on the CPU: by mma.sync, and by wgmma as on sm_90a."""

from __future__ import annotations

import pytest
import torch

from openmythos import reference
from tests.cases.mla_attention import attention_inputs
from tests.native import calls
from tests.native.on_host import OnHost
from tests.tolerances import assert_close
from tools import building
from tools.recording_driver import FakeOps

pytestmark = pytest.mark.skipif(building.missing_gxx() is not None, reason=f"{building.missing_gxx()}")

each_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
each_kind = pytest.mark.parametrize("hopper", [False, True], ids=["mma.sync", "wgmma"])
# (dn, dr, dc, dv)
HEADS = {"1b": (64, 32, 64, 64), "3b": (96, 32, 96, 96), "10b": (128, 64, 128, 128)}
each_head = pytest.mark.parametrize("dims", HEADS.values(), ids=HEADS.keys())


def check(fake: FakeOps, hopper: bool, args: list, tail: tuple) -> None:
    host, dtype = OnHost(fake, "mla_decompressed", hopper), args[0].dtype
    found = host.call(calls.mla_decompressed, (*args, *tail))
    name = {torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    instance = "_".join(str(args[i].shape[axis]) for i, axis in ((0, 3), (1, 3), (5, 1)))
    assert host.launched == ["openmythos_mla_decompressed_gather", f"openmythos_mla_decompressed_{name}_{instance}"]
    plain = reference.mla_decompressed(*args, *tail)
    truth = reference.mla_decompressed(*(part.double() for part in args), *tail)
    for part, mine, true, other in zip(("out", "lse"), found, truth, plain, strict=True):
        assert_close(part, mine, true, other, dtype)


@each_dtype
@each_kind
@each_head
def test_mla_decompressed(fake_ops: FakeOps, dtype: torch.dtype, hopper: bool, dims: tuple) -> None:
    """Two blocks of queries after a cached prefix, the last with one row; the second sequence is shorter than that."""
    args = attention_inputs(2, 129, 150, 1, dims, dtype)
    args[2][1, 70:] = float("nan")
    check(fake_ops, hopper, args, (0.1, True, torch.tensor([150, 70]), None))


@pytest.mark.slow
@each_dtype
@each_kind
@each_head
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_many_tiles(fake_ops: FakeOps, dtype: torch.dtype, hopper: bool, dims: tuple, causal: bool) -> None:
    """Eleven tiles, most of which change no row's maximum; one sequence has a single key and one none."""
    args = attention_inputs(3, 300, 700, 2, dims, dtype)
    args[2][1, 1:] = args[2][2] = float("nan")
    check(fake_ops, hopper, args, (0.1, causal, torch.tensor([700, 1, 0]), None))
