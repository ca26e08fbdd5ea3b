"""newop: every backend, storage dtype, odd shape and stride."""

from __future__ import annotations

import pytest
import torch

from openmythos import dispatch
from openmythos.ops.newop import NewOp, newop
from openmythos.ops.newop.reference import newop as reference
from tests.tolerances import assert_close

SHAPES = [(1, 1), (2, 63), (129, 131), (3, 5, 256), (0, 97)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("backend", [entry.name for entry in dispatch.entries("newop", "cpu")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_newop(backend: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape[:-1], shape[-1] + 3).to(dtype)[..., : shape[-1]]
    entry = next(entry for entry in dispatch.entries("newop", "cpu") if entry.name == backend)
    if reason := entry.supports(NewOp(x)):
        pytest.skip(f"{backend}: {reason}")
    assert_close("newop", entry.run(NewOp(x)), reference(x.double()), reference(x), dtype)


@pytest.mark.unpoisoned
def test_contract() -> None:
    torch.library.opcheck(torch.ops.openmythos.newop.default, (torch.randn(5, 97),))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"x \(\): must be \(\.\.\., D\)"):
        newop(torch.tensor(1.0))
