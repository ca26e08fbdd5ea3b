"""mla_attention: multi-head latent attention over a shared latent, decompressed on the fly."""

from __future__ import annotations

import torch

from openmythos import dispatch, reference
from openmythos.ops._library import accepts_backend, autocast, autograd, define, direct
from openmythos.reference.precision import wide

FORMS = ("auto", "absorbed", "decompressed")

SCHEMA = (
    "(Tensor q_nope, Tensor q_rope, Tensor latent, Tensor k_rope, Tensor w_uk, Tensor w_uv, float scale, bool causal,"
    " Tensor? seq_lens=None, Tensor? block_table=None, str form='decompressed') -> (Tensor, Tensor)"
)


def _fake(q_nope, q_rope, latent, k_rope, w_uk, w_uv, scale, causal, seq_lens=None, block_table=None, form=""):
    batch, new, heads, _ = q_nope.shape
    out = q_nope.new_empty((batch, new, heads, w_uv.shape[1]))
    return out, q_nope.new_empty((batch, heads, new), dtype=wide(q_nope.dtype))


def _backward_fake(grad, q_nope, q_rope, latent, k_rope, w_uk, w_uv, out, lse, scale, causal, seq_lens=None):
    parts = (q_nope, q_rope, latent, k_rope, w_uk, w_uv)
    return tuple(torch.empty(part.shape, dtype=part.dtype, device=grad.device) for part in parts)


define("mla_attention", SCHEMA, _fake, reference.mla_attention)
define(
    "mla_attention_backward",
    "(Tensor grad, Tensor q_nope, Tensor q_rope, Tensor latent, Tensor k_rope, Tensor w_uk, Tensor w_uv, Tensor out,"
    " Tensor lse, float scale, bool causal, Tensor? seq_lens=None)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_fake,
    lambda *args: tuple(part.contiguous() for part in reference.mla_attention_backward(*args)),
)


def _setup(ctx, inputs, output):
    *tensors, ctx.scale, ctx.causal, seq_lens, block_table, _ = inputs
    if block_table is not None:
        raise ValueError("block_table: a paged cache has no backward; pass latent and k_rope as (B, S, d)")
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(*tensors, out, lse, seq_lens)


def _autograd(ctx, grad, grad_lse):
    *tensors, seq_lens = ctx.saved_tensors
    grads = torch.ops.openmythos.mla_attention_backward(grad, *tensors, ctx.scale, ctx.causal, seq_lens)
    return *grads, None, None, None, None, None


autograd("mla_attention", _setup, _autograd)


def absorbed_wins(new: int, total: int, dc: int, dn: int, dv: int) -> bool:
    """Whether the absorbed form needs fewer FLOPs: T < a S / (a + S) with a = dc (dn + dv) / (2 dc - dn - dv)."""
    rest = 2 * dc - dn - dv
    return rest <= 0 or new * total * rest < (total - new) * dc * (dn + dv)


def _check(q_nope, q_rope, latent, k_rope, w_uk, w_uv, seq_lens, block_table, form) -> None:
    if form not in FORMS:
        raise ValueError(f"form={form!r}: allowed are {', '.join(FORMS)}")
    if q_nope.dim() != 4 or q_rope.dim() != 4 or q_nope.shape[:3] != q_rope.shape[:3]:
        raise ValueError(
            f"q_nope {tuple(q_nope.shape)} and q_rope {tuple(q_rope.shape)}: must be (B, T, H, dn) and (B, T, H, dr)"
        )
    if latent.dim() != 3 or k_rope.dim() != 3 or latent.shape[:2] != k_rope.shape[:2]:
        raise ValueError(
            f"latent {tuple(latent.shape)} and k_rope {tuple(k_rope.shape)}: must be (B, S, dc) and (B, S, dr)"
        )
    batch, _, heads, dn = q_nope.shape
    if tuple(w_uk.shape) != (heads, dn, latent.shape[2]):
        raise ValueError(f"w_uk {tuple(w_uk.shape)}: must be (H, dn, dc)={(heads, dn, latent.shape[2])}")
    if w_uv.dim() != 3 or w_uv.shape[0] != heads or w_uv.shape[2] != latent.shape[2]:
        raise ValueError(f"w_uv {tuple(w_uv.shape)}: must be (H, dv, dc) with H={heads}, dc={latent.shape[2]}")
    if k_rope.shape[2] != q_rope.shape[3]:
        raise ValueError(f"k_rope {tuple(k_rope.shape)}: its last dimension must be dr={q_rope.shape[3]}")
    if block_table is None and latent.shape[0] != batch:
        raise ValueError(f"latent {tuple(latent.shape)}: its batch must be that of q_nope, {batch}")
    for name, value in (("seq_lens", seq_lens), ("block_table", block_table)):
        if value is not None and (value.shape[0] != batch or value.is_floating_point()):
            raise ValueError(
                f"{name} {tuple(value.shape)} {value.dtype}: must be integers, one row a sequence (B={batch})"
            )
    if block_table is not None and seq_lens is None:
        raise ValueError("seq_lens: a paged cache (block_table) needs the lengths of its sequences")


@accepts_backend
def mla_attention(
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    latent: torch.Tensor,
    k_rope: torch.Tensor,
    w_uk: torch.Tensor,
    w_uv: torch.Tensor,
    *,
    scale: float,
    causal: bool,
    seq_lens: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    form: str = "auto",
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """softmax((q_nope . w_uk latent + q_rope . k_rope) * scale) over the keys, times w_uv latent.

    Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434). `latent` is already normalised, `k_rope`
    already rotated and shared by all heads. Causal is bottom-right aligned: query i of T sees key j when
    j <= S - T + i. A query that sees no key gives 0 and lse -inf.

    q_nope (B, T, H, dn), q_rope (B, T, H, dr), latent (B, S, dc), k_rope (B, S, dr), w_uk (H, dn, dc),
    w_uv (H, dv, dc), seq_lens (B) integers -> out (B, T, H, dv) in q_nope's dtype [, lse (B, H, T) float32].
    With block_table (B, m) integers, latent and k_rope are pools (pages, page, dc) and (pages, page, dr).
    form: "absorbed" folds the queries through w_uk and never rebuilds keys, "decompressed" rebuilds keys
    and values, "auto" takes the one with fewer FLOPs.

    Raises:
        ValueError: when shapes do not agree, the form is unknown, or a paged cache comes without seq_lens.
    """
    _check(q_nope, q_rope, latent, k_rope, w_uk, w_uv, seq_lens, block_table, form)
    if form == "auto":
        total = latent.shape[1] if block_table is None else block_table.shape[1] * latent.shape[1]
        wins = absorbed_wins(q_nope.shape[1], total, latent.shape[2], w_uk.shape[1], w_uv.shape[1])
        form = "absorbed" if wins else "decompressed"
    if device := direct(q_nope):
        args = (q_nope, q_rope, latent, k_rope, w_uk, w_uv, scale, causal, seq_lens, block_table, form)
        out, lse = dispatch.select("mla_attention", device, *args)(*args)
    else:
        tensors = autocast(q_nope, q_rope, latent, k_rope, w_uk, w_uv)
        out, lse = torch.ops.openmythos.mla_attention(*tensors, scale, causal, seq_lens, block_table, form)
    return (out, lse) if return_lse else out
