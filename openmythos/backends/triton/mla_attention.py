"""mla_attention in both its forms, and the backward of the decompressed one."""

from __future__ import annotations

import torch

from openmythos.backends.triton.rows import register_row, why_not

# What CUDA takes in a launch's second and third dimension; tokens and keys go into the first.
MAX_BATCH = 65535
# Below it, tiles of keys and values of all heads, up to 128 rows of H (dn + dv), are addressed with 32 bits.
MAX_HEADS = 32767
# Widths that a kernel holds whole in its tiles; the latent is read in chunks and may be of any width.
MAX_HEAD, MAX_ROPE = 256, 128
# Rows are counted in 32 bits, with room for a tile past the last one.
MAX_ROWS = 2**30
# Inside a tile offsets have 32 bits: its 128 rows may lie this far apart, the rows of a head's weight less, for a head
# is one tile.
MAX_STRIDE, MAX_WEIGHT_STRIDE, MAX_OFFSET = 2**24, 2**22, 2**31


def _sizes(q_nope: torch.Tensor, dr: int, dv: int, keys: int) -> str | None:
    batch, new, heads, dn = q_nope.shape
    if batch > MAX_BATCH:
        return f"{batch} sequences: the kernels take up to {MAX_BATCH}"
    if heads > MAX_HEADS:
        return f"{heads} heads: the kernels take up to {MAX_HEADS}"
    if max(dn, dv) > MAX_HEAD:
        return f"head sizes dn={dn} and dv={dv}: the kernels take up to {MAX_HEAD}"
    if dr > MAX_ROPE:
        return f"dr={dr}: the kernels take up to {MAX_ROPE}"
    for what, rows in (("tokens", batch * new), ("rows of tokens and heads", new * heads), ("keys", keys)):
        if rows > MAX_ROWS:
            return f"{rows} {what}: the kernels take up to {MAX_ROWS}"
    return None


def _too_far(limit: int, **tensors: torch.Tensor) -> str | None:
    for name, tensor in tensors.items():
        if tensor.shape[1] > 1 and tensor.stride(1) >= limit:
            return f"rows of {name} {tensor.stride(1)} elements apart: the kernels take less than {limit}"
    return None


def _one_dtype(*tensors: torch.Tensor) -> str | None:
    if any(tensor.dtype != tensors[0].dtype for tensor in tensors):
        return "the tensors have different dtypes"
    return why_not(*tensors)


def _lengths(seq_lens: torch.Tensor | None) -> str | None:
    if seq_lens is not None and seq_lens.shape[0] > 1 and seq_lens.stride(0) != 1:
        return "seq_lens is not contiguous"
    return None


def _pages(latent: torch.Tensor, k_rope: torch.Tensor, block_table: torch.Tensor) -> str | None:
    page = latent.shape[1]
    if page % 16:
        return f"pages of {page} tokens: the kernels take multiples of 16"
    if block_table.stride(-1) != 1 and block_table.shape[-1] > 1:
        return "block_table's rows are not contiguous"
    for name, pool in (("latent", latent), ("k_rope", k_rope)):
        if page * pool.stride(1) >= MAX_OFFSET:
            return f"pages of {name} of {page * pool.stride(1)} elements: the kernels take less than {MAX_OFFSET}"
    return None


def _supports(
    q_nope, q_rope, latent, k_rope, w_uk, w_uv, scale, causal, seq_lens=None, block_table=None, form="decompressed"
) -> str | None:
    keys = latent.shape[1] * (1 if block_table is None else block_table.shape[1])
    return (
        _sizes(q_nope, q_rope.shape[3], w_uv.shape[1], keys)
        or (None if block_table is None else _pages(latent, k_rope, block_table))
        or _too_far(MAX_STRIDE, latent=latent, k_rope=k_rope)
        or _too_far(MAX_WEIGHT_STRIDE, w_uk=w_uk, w_uv=w_uv)
        or _lengths(seq_lens)
        or _one_dtype(q_nope, q_rope, latent, k_rope, w_uk, w_uv)
    )


def _backward_supports(
    grad, q_nope, q_rope, latent, k_rope, w_uk, w_uv, out, lse, scale, causal, seq_lens=None
) -> str | None:
    if grad.dtype != q_nope.dtype:
        return "the tensors have different dtypes"
    return (
        _sizes(q_nope, q_rope.shape[3], w_uv.shape[1], latent.shape[1])
        or _too_far(MAX_STRIDE, q_nope=q_nope, q_rope=q_rope, grad=grad, k_rope=k_rope)
        or _lengths(seq_lens)
        or _one_dtype(q_nope, q_rope, latent, k_rope, w_uk, w_uv, out)
    )


register_row("mla_attention", "mla_attention.mla_attention", _supports)
register_row("mla_attention_backward", "mla_attention.mla_attention_backward", _backward_supports)
