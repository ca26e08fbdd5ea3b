"""The CUDA source of moe_experts for many rows, and of moe_route, on the CPU against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from openmythos import reference
from tests.cases import doubled, randn
from tests.cases.shared_experts import routed_and_shared
from tests.native import calls
from tests.native.moe_cases import SHORT, SIZES, case, flat, launched
from tests.native.on_host import OnHost
from tests.tolerances import assert_close
from tools import building
from tools.recording_driver import FakeOps

pytestmark = pytest.mark.skipif(building.missing_gxx() is not None, reason=f"{building.missing_gxx()}")

QUICK = {("17 rows", torch.bfloat16), ("eight numbers", torch.float16)}
CASES = [
    pytest.param(name, dtype, id=f"{name}-{SHORT[dtype]}", marks=[] if (name, dtype) in QUICK else [pytest.mark.slow])
    for name in SIZES
    for dtype in SHORT
]


@pytest.mark.parametrize("hopper", [False, True], ids=["mma.sync", "wgmma"])
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_experts(fake_ops: FakeOps, name: str, dtype: torch.dtype, hopper: bool) -> None:
    host, args = OnHost(fake_ops, "moe_grouped", hopper), case(name, dtype)
    (found,) = host.call(flat, args)
    assert host.launched == launched(dtype)
    assert_close(name, found, routed_and_shared(*doubled(args)), routed_and_shared(*args), dtype)


@pytest.mark.parametrize(("n", "e", "k"), [(40, 64, 4), (17, 300, 100), (3, 7, 2)])
def test_route(fake_ops: FakeOps, n: int, e: int, k: int) -> None:
    args = (randn(n, e, dtype=torch.bfloat16, scale=2), randn(e), k)
    ids, weights, counts = OnHost(fake_ops, "moe_route").call(calls.moe_route, args)
    want = reference.moe_route(*args)
    assert torch.equal(ids, want[0])
    assert torch.equal(counts, want[2])
    assert_close("weights", weights, reference.moe_route(*doubled(args))[1], want[1], torch.float32)
