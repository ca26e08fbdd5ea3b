"""The golden table's instructions: matrix units for every 16-bit product, IEEE arithmetic for float32, wide loads."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from openmythos.triton_kernels.launch import TARGETS
from tests import golden
from tests.aot.specimens import load

# Kernels that multiply matrices, and which of their constexprs has the rows of a tile.
PRODUCTS = {
    "_mla_fold_kernel": "BLOCK_R",
    "_mla_decode_kernel": "BLOCK_M",
    "_mla_combine_kernel": "BLOCK_R",
    "_mla_scores_kernel": "BLOCK_M",
    "_mla_values_kernel": "BLOCK_M",
    "_mla_prefill_kernel": "BLOCK_M",
    "_mla_backward_queries_kernel": "BLOCK_M",
    "_mla_backward_keys_kernel": "BLOCK_N",
    "_moe_gate_up_kernel": "BLOCK_M",
    "_moe_down_kernel": "BLOCK_M",
    "_moe_hidden_grad_kernel": "BLOCK_M",
    "_moe_weight_grad_kernel": "BLOCK_M",
    "_moe_decode_up_kernel": "ROWS",
    "_moe_decode_down_kernel": "ROWS",
}
# Kernels whose time is what they move.
STREAMS = (
    "_rms_norm_kernel",
    "_rms_norm_backward_kernel",
    "_loop_step_kernel",
    "_loop_step_wide_kernel",
    "_loop_step_backward_kernel",
    "_loop_step_wide_sums_kernel",
    "_loop_step_wide_columns_kernel",
    "_mla_decode_kernel",
    "_moe_decode_up_kernel",
    "_moe_decode_down_kernel",
    "_moe_gather_sum_kernel",
)
WMMA = {"bfloat16": "v_wmma_f32_16x16x16_bf16", "float16": "v_wmma_f32_16x16x16_f16"}
LEAST_WGMMA_ROWS = 64


def _tile_rows(row: dict[str, Any]) -> int:
    """Rows of a product's tile; 1 for a kernel that multiplies no matrices as it was built here."""
    name = PRODUCTS.get(row["kernel"])
    return int(re.search(rf"\b{name}=(\d+)", row["config"]).group(1)) if name else 1


def _rows(op: str, arch: str) -> list[tuple[str, str, dict[str, Any]]]:
    return [(name, name.split("/")[-1], row) for name, row in golden.read("triton", op).rows(arch)]


@pytest.mark.parametrize("op", load())
def test_products_of_16_bits_use_wmma_on_gfx1151(op: str) -> None:
    for name, dtype, row in _rows(op, "gfx1151"):
        want = {WMMA[dtype]} if dtype in WMMA and _tile_rows(row) > 1 else set()
        # sums of products become dot instructions of their own
        assert {part for part in row["matrix"] if "wmma" in part} == want, f"{name}: {row['kernel']}"


@pytest.mark.parametrize("op", load())
def test_products_of_16_bits_use_wgmma_on_sm90_where_a_tile_has_64_rows(op: str) -> None:
    for name, dtype, row in _rows(op, "sm90"):
        rows, want = _tile_rows(row), set()
        if dtype in WMMA and rows > 1:
            want = {"wgmma.mma_async"} if rows >= LEAST_WGMMA_ROWS else {"mma.sync"}
        assert set(row["matrix"]) == want, f"{name}: {row['kernel']}"


@pytest.mark.parametrize("op", load())
def test_products_of_16_bits_use_mma_sync_on_sm80(op: str) -> None:
    for name, dtype, row in _rows(op, "sm80"):
        want = {"mma.sync"} if dtype in WMMA and _tile_rows(row) > 1 else set()
        assert set(row["matrix"]) == want, f"{name}: {row['kernel']}"


@pytest.mark.parametrize("op", load())
def test_products_of_16_bits_use_tcgen05_on_sm100_where_a_tile_has_64_rows(op: str) -> None:
    for name, dtype, row in _rows(op, "sm100"):
        rows = _tile_rows(row)
        if dtype not in WMMA or rows == 1:
            assert not row["matrix"], f"{name}: {row['kernel']}"
        else:
            want = "tcgen05.mma" if rows >= LEAST_WGMMA_ROWS else "mma.sync"
            assert row["matrix"].get(want), f"{name}: {row['kernel']} has {row['matrix']}"


def test_every_kernel_that_is_named_here_is_in_the_table() -> None:
    known = {row["kernel"] for op in load() for _, row in golden.read("triton", op).rows("sm90")}
    assert {*PRODUCTS, *STREAMS} <= known


@pytest.mark.parametrize("op", load())
@pytest.mark.parametrize("arch", TARGETS)
def test_what_moves_bytes_loads_16_of_them_at_once(op: str, arch: str) -> None:
    for name, _, row in _rows(op, arch):
        if row["kernel"] in STREAMS and "/odd" not in name:
            assert row["widest_load"] == 128, f"{name}: {row['kernel']} loads {row['widest_load']} bits"
