"""mla_attention in both its forms, and the backward of the decompressed one."""

from __future__ import annotations

import torch

from openmythos.backends.triton.rows import register_row, why_not

# What a launch's third dimension takes.
MAX_BATCH = 65535
# Widths that a kernel holds whole in its tiles; the latent is read in chunks and may be of any width.
MAX_HEAD, MAX_ROPE = 256, 128


def _sizes(batch: int, dn: int, dr: int, dv: int) -> str | None:
    if batch > MAX_BATCH:
        return f"{batch} sequences: the kernels take up to {MAX_BATCH}"
    if max(dn, dv) > MAX_HEAD:
        return f"head sizes dn={dn} and dv={dv}: the kernels take up to {MAX_HEAD}"
    if dr > MAX_ROPE:
        return f"dr={dr}: the kernels take up to {MAX_ROPE}"
    return None


def _one_dtype(*tensors: torch.Tensor) -> str | None:
    if any(tensor.dtype != tensors[0].dtype for tensor in tensors):
        return "the tensors have different dtypes"
    return why_not(*tensors)


def _supports(
    q_nope, q_rope, latent, k_rope, w_uk, w_uv, scale, causal, seq_lens=None, block_table=None, form="decompressed"
) -> str | None:
    reason = _sizes(q_nope.shape[0], w_uk.shape[1], q_rope.shape[3], w_uv.shape[1])
    if reason is None and block_table is not None:
        if latent.shape[1] % 16:
            return f"pages of {latent.shape[1]} tokens: the kernels take multiples of 16"
        if block_table.stride(-1) != 1 and block_table.shape[-1] > 1:
            return "block_table's rows are not contiguous"
    return reason or _one_dtype(q_nope, q_rope, latent, k_rope, w_uk, w_uv)


def _backward_supports(
    grad, q_nope, q_rope, latent, k_rope, w_uk, w_uv, out, lse, scale, causal, seq_lens=None
) -> str | None:
    reason = _sizes(q_nope.shape[0], w_uk.shape[1], q_rope.shape[3], w_uv.shape[1])
    return reason or _one_dtype(q_nope, q_rope, latent, k_rope, w_uk, w_uv, out)


register_row("mla_attention", "mla_attention.mla_attention", _supports)
register_row("mla_attention_backward", "mla_attention.mla_attention_backward", _backward_supports)
