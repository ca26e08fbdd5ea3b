"""mla_absorbed's CUDA source on the CPU against the float64 reference, which checks fragments and lane exchanges."""

from __future__ import annotations

import pytest
import torch

from openmythos import reference
from tests.cases import each_dtype
from tests.cases.mla_attention import attention_inputs, paged
from tests.native import calls
from tests.native.on_host import OnHost
from tests.tolerances import assert_close
from tools import building
from tools.recording_driver import FakeOps

pytestmark = pytest.mark.skipif(building.missing_gxx() is not None, reason=f"{building.missing_gxx()}")

WIDTHS = {256: (29, 32, 256, 47), 384: (96, 32, 384, 31), 512: (40, 64, 512, 17), 1024: (24, 64, 1024, 33)}


@each_dtype
@pytest.mark.parametrize(
    "dims",
    [pytest.param(dims, id=f"{dc}", marks=[] if dc < 400 else [pytest.mark.slow]) for dc, dims in WIDTHS.items()],
)
@pytest.mark.parametrize("heads", [6, 11], ids=["12 rows", "22 rows"])
def test_mla_attention(fake_ops: FakeOps, dtype: torch.dtype, dims: tuple, heads: int) -> None:
    """Ragged, in shuffled pages, causal: two tokens, splits of up to three tiles, the last sequence empty."""
    args = attention_inputs(3, 2, 170, heads, dims, dtype)
    lengths = torch.tensor([165, 33, 0])
    pools, table = paged(args, lengths.tolist(), 16, 2**30)
    fake_ops.driver.reset(devices=1, multiprocessors=6)
    host, tail = OnHost(fake_ops, "mla_absorbed"), (0.1, True)
    found = host.call(calls.mla_absorbed, (*pools, *tail, lengths, table))
    name = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    prefix = f"openmythos_mla_absorbed_{name}"
    rows = "_rows32" if heads == 11 and dims[2] <= 512 and dtype != torch.float32 else ""
    assert host.launched == [f"{prefix}_fold", f"{prefix}_{dims[2]}_{dims[1]}{rows}", f"{prefix}_combine"]
    plain = reference.mla_absorbed(*args, *tail, lengths, None)
    truth = reference.mla_absorbed(*(part.double() for part in args), *tail, lengths, None)
    for part, mine, true, other in zip(("out", "lse"), found, truth, plain, strict=True):
        assert_close(part, mine, true, other, dtype)
