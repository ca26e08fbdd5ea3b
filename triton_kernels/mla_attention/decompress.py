"""Keys and values of every head, rebuilt from the latent by one matrix product.

Rebuilding them tile by tile inside the attention would cost 2 dc (dn + dv) FLOPs per key and head for every block of
queries. Done once, it costs that much in total, plus writing and reading H (dn + dv) values per key.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from openmythos.triton_kernels.launch import launch
from openmythos.triton_kernels.mla_attention.tiles import key_rows, load_tile, pieces, sequence_strides, store_tile

# rows per program of the page copy
COPIED_ROWS = 16


@triton.jit(do_not_specialize=["total", "table_b"])
def _mla_gather_pages_kernel(
    p_latent, p_k_rope, p_lens, p_table, p_out, total, latent_b, latent_s, k_rope_b, k_rope_s, table_b,
    DC: tl.constexpr, DR: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr, R0: tl.constexpr, R1: tl.constexpr,
    PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK keys of a sequence from their pages to consecutive rows [latent | rope key]."""
    i_batch = tl.program_id(1).to(tl.int64)
    first, o_n = tl.program_id(0) * BLOCK, tl.arange(0, BLOCK)
    m_n = first + o_n < tl.load(p_lens + i_batch)
    p_pages = p_table + i_batch * table_b
    p_key = key_rows(p_latent, p_pages, first, o_n, m_n, latent_b, latent_s, PAGE)
    p_rope = key_rows(p_k_rope, p_pages, first, o_n, m_n, k_rope_b, k_rope_s, PAGE)
    p_row = p_out + (i_batch * total + first + o_n) * (DC + DR)
    store_tile(p_row, load_tile(p_key, m_n, 0, C0, DC), m_n, 0, C0, DC)
    if C1:
        store_tile(p_row, load_tile(p_key, m_n, C0, C1, DC), m_n, C0, C1, DC)
    store_tile(p_row + DC, load_tile(p_rope, m_n, 0, R0, DR), m_n, 0, R0, DR)
    if R1:
        store_tile(p_row + DC, load_tile(p_rope, m_n, R0, R1, DR), m_n, R0, R1, DR)


def gather_pages(
    latent: torch.Tensor, k_rope: torch.Tensor, seq_lens: torch.Tensor, block_table: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pools (pages, page, d) and block_table (B, m) -> (B, m page, dc) and (B, m page, dr), views of one buffer.

    Rows past a sequence's length are not written, and their page numbers not read.
    """
    page, dc, dr = latent.shape[1], latent.shape[2], k_rope.shape[2]
    batch, total = block_table.shape[0], block_table.shape[1] * page
    out = torch.empty((batch, total, dc + dr), dtype=latent.dtype, device=latent.device)
    (c0, c1), (r0, r1) = pieces(dc), pieces(dr)
    launch(
        _mla_gather_pages_kernel, (triton.cdiv(total, COPIED_ROWS), batch), latent, k_rope, seq_lens, block_table, out,
        total, *sequence_strides(latent), *sequence_strides(k_rope), block_table.stride(0), DC=dc, DR=dr, C0=c0, C1=c1,
        R0=r0, R1=r1, PAGE=page, BLOCK=COPIED_ROWS, options={"num_warps": 8},
    )  # fmt: skip
    return out[..., :dc], out[..., dc:]


def joint_weight(w_uk: torch.Tensor, w_uv: torch.Tensor) -> torch.Tensor:
    """w_uk (H, dn, dc) and w_uv (H, dv, dc) as one matrix (H (dn + dv), dc): a view if they are halves of one."""
    heads, dn, dc = w_uk.shape
    whole = dn + w_uv.shape[1]
    strides = (whole * dc, dc, 1)
    if (
        w_uk.stride() == strides == w_uv.stride()
        and w_uk.untyped_storage().data_ptr() == w_uv.untyped_storage().data_ptr()
        and w_uv.storage_offset() == w_uk.storage_offset() + dn * dc
    ):
        return w_uk.as_strided((heads * whole, dc), (dc, 1))
    return torch.cat((w_uk, w_uv), dim=1).flatten(0, 1)


def _as_rows(x: torch.Tensor) -> torch.Tensor | None:
    """x (B, S, d) as (B S, d) if no copy is needed."""
    batch, length, width = x.shape
    if batch == 1 or x.stride(0) == length * x.stride(1):
        return x.as_strided((batch * length, width), (x.stride(1), 1))
    return None


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (B, S, d), last stride 1, times weight (O, d) -> (B, S, O), without copying x."""
    rows = _as_rows(x)
    if rows is not None:
        return torch.mm(rows, weight.T).view(*x.shape[:2], weight.shape[0])
    return torch.bmm(x, weight.T.expand(x.shape[0], -1, -1))
