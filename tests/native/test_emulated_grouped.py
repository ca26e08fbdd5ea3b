"""moe of many rows and moe_route of more than a block's as gfx1151 code on the emulator; see emulated.py."""

from __future__ import annotations

import pytest
import torch

from openmythos import reference
from openmythos.backends import calls
from tests.emulated import emulator
from tests.native.emulated import Emulated
from tests.native.grouped_cases import SIZES, case, each_half, flat, launched, with_shared
from tests.ops.cases import doubled, each_dtype, randn, strided
from tests.ops.shared_experts import routed_and_shared
from tests.ops.test_moe_experts import experts
from tests.tolerances import assert_close

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulator.missing() is not None, reason=f"{emulator.missing()}"),
]


@each_half
@pytest.mark.parametrize("name", SIZES)
def test_experts(emulated: Emulated, dtype: torch.dtype, name: str) -> None:
    emulated.check(flat, routed_and_shared, case(name, dtype), [dtype])
    assert emulated.kernels == launched(dtype)
