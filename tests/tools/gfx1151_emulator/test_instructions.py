"""Single instructions of the emulator that move lanes, halves and scalars, on 32 lanes, against torch."""

from __future__ import annotations

import pytest
import torch

from tests.tools.gfx1151_emulator.hip import PROGRAMS, needs_hip
from tools import gfx1151_emulator as emulator
from tools.gfx1151_emulator.hip import compile_hip

pytestmark = needs_hip

LANE = torch.arange(32)
ROW, PLACE = LANE & 16, LANE & 15
OLD = (1000 + LANE).int()
ALL = 0xFFFFFFFF
SOME = 0x0F0F0F0F


def run(instruction: str, x: torch.Tensor, y: torch.Tensor, on: int = ALL, lds: bool = False) -> torch.Tensor:
    """The lanes of v2 after `instruction`, with v0 = x, v1 = y, v2 = OLD, v3 = 4 * lane; with `lds`, LDS holds x."""
    lines = ["s_mov_b32 exec_lo, -1", "v_mov_b32 v0, %1", "v_mov_b32 v1, %2", "v_lshlrev_b32 v3, 2, %3"]
    lines += ["v_add_nc_u32 v2, 1000, %3", *(["ds_store_b32 v3, v0 offset:0"] if lds else [])]
    lines += ["s_waitcnt lgkmcnt(0)", f"s_mov_b32 exec_lo, 0x{on:x}", instruction, "s_waitcnt lgkmcnt(0)"]
    lines += ["s_mov_b32 exec_lo, -1", "v_mov_b32 %0, v2"]
    text = "\\n".join(lines).replace("\n", "\\n")
    source = f"""#include "device.h"
    KERNEL one(const int* x, const int* y, int* out) {{
        __shared__ int memory[64];
        memory[threadIdx.x] = 0;
        int result;
        asm volatile("{text}" : "=v"(result) : "v"(x[threadIdx.x]), "v"(y[threadIdx.x]), "v"(threadIdx.x)
                     : "v0", "v1", "v2", "v3", "memory");
        out[threadIdx.x] = result;
    }}"""
    out = torch.zeros(32, dtype=torch.int32)
    emulator.launch(compile_hip(source, ["-I", str(PROGRAMS)]), "one", (1,), (32,), [x, y, out])
    return out


def words() -> torch.Tensor:
    return torch.randint(0, 1 << 20, (32,), dtype=torch.int32)


def taken(x: torch.Tensor, source: torch.Tensor, exists: torch.Tensor, other: torch.Tensor | int) -> torch.Tensor:
    """x[source] where that lane exists."""
    return torch.where(exists, x[source.clamp(0, 31)], other).int()


EVERYWHERE = torch.ones(32, dtype=torch.bool)
DPP = {
    "row_shr:3 bound_ctrl:1": (LANE - 3, PLACE >= 3, 0),
    "row_shl:5 bound_ctrl:1": (LANE + 5, PLACE < 11, 0),
    "row_shr:3": (LANE - 3, PLACE >= 3, OLD),
    "row_ror:4": (ROW + ((PLACE - 4) & 15), EVERYWHERE, 0),
    "row_mirror": (ROW + 15 - PLACE, EVERYWHERE, 0),
    "row_half_mirror": ((LANE & 24) + 7 - (LANE & 7), EVERYWHERE, 0),
    "quad_perm:[1,2,3,0]": ((LANE & 28) + ((LANE + 1) & 3), EVERYWHERE, 0),
    "row_share:6": (ROW + 6, EVERYWHERE, 0),
    "row_xmask:5": (LANE ^ 5, EVERYWHERE, 0),
    "row_mirror row_mask:0x2": (ROW + 15 - PLACE, LANE >= 16, OLD),
    "row_mirror bank_mask:0x5": (ROW + 15 - PLACE, (PLACE >> 2) & 1 == 0, OLD),
    "dpp8:[7,6,5,4,3,2,1,0]": ((LANE & 24) + 7 - (LANE & 7), EVERYWHERE, 0),
}


@pytest.mark.parametrize("how", DPP)
def test_dpp_moves_lanes(how: str) -> None:
    x = words()
    assert torch.equal(run(f"v_mov_b32_dpp v2, v0 {how}", x, x), taken(x, *DPP[how]))


def test_dpp_in_place_reads_the_old_values() -> None:
    x = words()
    found = run("v_add_nc_u32_dpp v0, v0, v0 row_shr:1\n v_mov_b32 v2, v0", x, x)
    assert torch.equal(found, torch.where(PLACE >= 1, x[(LANE - 1).clamp(0)] + x, x))


def test_dpp_keeps_modifiers() -> None:
    x, y = words().float(), words().float()
    rotated = x[ROW + ((PLACE - 1) & 15)]
    found = run("v_sub_f32_dpp v2, -v0, |v1| row_ror:1", x.view(torch.int32), (-y).view(torch.int32))
    assert torch.equal(found.view(torch.float32), -rotated - y)
    found = run("v_fma_f32_e64_dpp v2, v0, v1, v1 row_ror:1", x.view(torch.int32), y.view(torch.int32))
    want = (rotated.double() * y.double() + y.double()).float()
    assert torch.equal(found.view(torch.float32), want)


def test_dpp_with_lanes_switched_off() -> None:
    x = words()
    on = ((SOME >> LANE) & 1).bool()
    lent = (PLACE >= 1) & on[(LANE - 1).clamp(0)]
    found = run("v_mov_b32_dpp v2, v0 row_shr:1 bound_ctrl:1", x, x, on=SOME)
    assert torch.equal(found, torch.where(on, taken(x, LANE - 1, lent, 0), OLD))


def test_permutations() -> None:
    x, y = words(), words()
    assert torch.equal(run("v_permlanex16_b32 v2, v0, -1, -1", x, y), x[(ROW ^ 16) + 15])
    selects = "s_mov_b32 s20, 0x76543210\n s_mov_b32 s21, 0xfedcba98\n v_permlane16_b32 v2, v0, s21, s20"
    assert torch.equal(run(selects, x, y), x[ROW + (PLACE ^ 8)])
    times4 = "v_lshlrev_b32 v1, 2, v1\n "
    assert torch.equal(run(f"{times4}ds_bpermute_b32 v2, v1, v0", x, y), x[y.long() & 31])
    order = torch.randperm(32).int()
    assert torch.equal(run(f"{times4}ds_permute_b32 v2, v1, v0", x, order)[order.long()], x)
    assert torch.equal(run("ds_swizzle_b32 v2, v0 offset:0x041F", x, y), x[LANE ^ 1])


def test_one_lane() -> None:
    x = words()
    assert torch.equal(run("v_readlane_b32 s20, v0, 13\n v_mov_b32 v2, s20", x, x), x[13].expand(32))
    found = run("s_mov_b32 s20, 77\n v_writelane_b32 v2, s20, 9", x, x)
    assert torch.equal(found, torch.where(LANE == 9, 77, OLD).int())
    assert torch.equal(run("v_readfirstlane_b32 s20, v0\n v_mov_b32 v2, s20", x, x), x[0].expand(32))


def low(value: torch.Tensor) -> torch.Tensor:
    return (OLD & -65536) | (value & 0xFFFF)


def high(value: torch.Tensor) -> torch.Tensor:
    return (OLD & 0xFFFF) | (value << 16)


def test_loads_of_halves() -> None:
    x = torch.randint(-(2**31), 2**31 - 1, (32,), dtype=torch.int32)
    octets = x.view(torch.uint8).view(32, 4).int()
    signed = torch.where(octets >= 128, octets - 256, octets)
    upper = (x >> 16) & 0xFFFF
    cases = (
        ("u16_d16", 0, low(x)),
        ("u16_d16_hi", 2, high(upper)),
        ("u8_d16", 3, low(octets[:, 3])),
        ("u8_d16_hi", 1, high(octets[:, 1])),
        ("i8_d16", 2, low(signed[:, 2])),
        ("i8_d16_hi", 0, high(signed[:, 0])),
        ("u16", 2, upper),
        ("i8", 1, signed[:, 1]),
    )
    for name, offset, want in cases:
        assert torch.equal(run(f"ds_load_{name} v2, v3 offset:{offset}", x, x, lds=True), want), name


def test_stores_of_halves() -> None:
    x = torch.randint(-(2**31), 2**31 - 1, (32,), dtype=torch.int32)
    octets = x.view(torch.uint8).view(32, 4).int()
    stores = "ds_store_b16_d16_hi v3, v0\n ds_store_b8 v3, v0 offset:3\n s_waitcnt lgkmcnt(0)\n ds_load_b32 v2, v3"
    want = ((x >> 16) & 0xFFFF) | (x & 0x00FF0000) | (octets[:, 0] << 24)
    assert torch.equal(run(stores, x, x, lds=True), want)


@pytest.mark.parametrize(
    ("instruction", "want"),
    [
        ("s_add_f32 s22, s20, s21", 5.5),
        ("s_mul_f32 s22, s20, s21", 7.5),
        ("s_sub_f32 s22, s20, 0x3f800000", 1.5),
        ("s_max_f32 s22, s20, s21", 3.0),
        ("s_mov_b32 s22, 1.0\n s_fmac_f32 s22, s20, s21", 8.5),
        ("s_cvt_i32_f32 s22, s20\n s_cvt_f32_i32 s22, s22", 2.0),
        ("s_floor_f32 s22, s20", 2.0),
        ("s_cmp_lt_f32 s20, s21\n s_cselect_b32 s22, 1.0, 2.0", 1.0),
        ("s_fmaak_f32 s22, s20, s21, 0x3f800000", 8.5),
    ],
)
def test_scalar_floats(instruction: str, want: float) -> None:
    """RDNA3.5 has them, RDNA3 does not; s20 = 2.5, s21 = 3."""
    x = torch.full((32,), 2.5).view(torch.int32)
    before = "v_readfirstlane_b32 s20, v0\n s_mov_b32 s21, 0x40400000\n "
    found = run(f"{before}{instruction}\n v_mov_b32 v2, s22", x, x).view(torch.float32)
    assert (found == want).all()


def test_denormals_are_kept() -> None:
    x, y = torch.full((32,), 1e-40).view(torch.int32), torch.full((32,), 2e-40).view(torch.int32)
    assert (run("v_add_f32 v2, v0, v1", x, y).view(torch.float32) > 2.9e-40).all()
