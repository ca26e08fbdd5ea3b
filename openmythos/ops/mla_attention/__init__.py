"""Multi-head latent attention: two ops of one call, `mla_absorbed` and `mla_decompressed`, behind one function."""

from __future__ import annotations

from typing import NamedTuple

import torch

from openmythos import dispatch
from openmythos.ops.core import accepts_backend, autocast, autograd, contiguous, define, direct, gradients
from openmythos.ops.mla_attention import reference
from openmythos.ops.precision import wide

FORMS = ("auto", "absorbed", "decompressed")


class MlaAttention(NamedTuple):
    """A call of `mla_absorbed` or `mla_decompressed`; shapes as in `mla_attention`."""

    q_nope: torch.Tensor
    q_rope: torch.Tensor
    latent: torch.Tensor
    k_rope: torch.Tensor
    w_uk: torch.Tensor
    w_uv: torch.Tensor
    scale: float
    causal: bool
    seq_lens: torch.Tensor | None = None
    block_table: torch.Tensor | None = None

    @property
    def total(self) -> int:
        """The number of keys of a full sequence, S."""
        pages = 1 if self.block_table is None else self.block_table.shape[1]
        return pages * self.latent.shape[1]


class MlaAttentionBackward(NamedTuple):
    """grad and out (B, T, H, dv), lse (B, H, T), and the forward's tensors; for keys that are not paged."""

    grad: torch.Tensor
    q_nope: torch.Tensor
    q_rope: torch.Tensor
    latent: torch.Tensor
    k_rope: torch.Tensor
    w_uk: torch.Tensor
    w_uv: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor
    scale: float
    causal: bool
    seq_lens: torch.Tensor | None = None


def _fake(call: MlaAttention) -> tuple[torch.Tensor, torch.Tensor]:
    batch, new, heads, _ = call.q_nope.shape
    out = call.q_nope.new_empty((batch, new, heads, call.w_uv.shape[1]))
    return out, out.new_empty((batch, heads, new), dtype=wide(out.dtype))


def _backward_fake(call: MlaAttentionBackward) -> tuple[torch.Tensor, ...]:
    inputs = (call.q_nope, call.q_rope, call.latent, call.k_rope, call.w_uk, call.w_uv)
    return tuple(torch.empty(part.shape, dtype=part.dtype, device=call.grad.device) for part in inputs)


def _setup(ctx, inputs, output):
    call = MlaAttention(*inputs)
    if call.block_table is not None:
        raise ValueError("block_table: a paged cache has no backward; pass latent and k_rope as (B, S, d)")
    out, lse = output
    ctx.scale, ctx.causal = call.scale, call.causal
    ctx.mark_non_differentiable(lse)
    tensors = (call.q_nope, call.q_rope, call.latent, call.k_rope, call.w_uk, call.w_uv)
    ctx.save_for_backward(*tensors, out, lse, call.seq_lens)


def _autograd(ctx, grad, grad_lse):
    *tensors, seq_lens = ctx.saved_tensors
    call = MlaAttentionBackward(grad, *tensors, ctx.scale, ctx.causal, seq_lens)
    q_nope, q_rope, latent, k_rope, w_uk, w_uv = torch.ops.openmythos.mla_attention_backward(*call)
    return gradients(MlaAttention, q_nope=q_nope, q_rope=q_rope, latent=latent, k_rope=k_rope, w_uk=w_uk, w_uv=w_uv)


for _name, _reference in (("mla_absorbed", reference.mla_absorbed), ("mla_decompressed", reference.mla_decompressed)):
    define(
        _name,
        MlaAttention,
        "(Tensor, Tensor)",
        fake=_fake,
        reference=lambda call, compute=_reference: compute(*call),
    )
    autograd(_name, _setup, _autograd)
define(
    "mla_attention_backward",
    MlaAttentionBackward,
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_backward_fake,
    reference=lambda call: contiguous(reference.mla_attention_backward(*call)),
)


def absorbed_wins(new: int, total: int, dc: int, dn: int, dv: int) -> bool:
    """Whether the absorbed form needs fewer FLOPs: T < a S / (a + S) with a = dc (dn + dv) / (2 dc - dn - dv)."""
    rest = 2 * dc - dn - dv
    return rest <= 0 or new * total * rest < (total - new) * dc * (dn + dv)


def _check(call: MlaAttention) -> None:
    q_nope, q_rope, latent, k_rope = call.q_nope.shape, call.q_rope.shape, call.latent.shape, call.k_rope.shape
    if len(q_nope) != 4 or len(q_rope) != 4 or q_nope[:3] != q_rope[:3]:
        raise ValueError(f"q_nope {tuple(q_nope)} and q_rope {tuple(q_rope)}: must be (B, T, H, dn) and (B, T, H, dr)")
    if len(latent) != 3 or len(k_rope) != 3 or latent[:2] != k_rope[:2]:
        raise ValueError(f"latent {tuple(latent)} and k_rope {tuple(k_rope)}: must be (B, S, dc) and (B, S, dr)")
    batch, _, heads, dn = q_nope
    w_uk, w_uv = call.w_uk.shape, call.w_uv.shape
    if w_uk != (heads, dn, latent[2]):
        raise ValueError(f"w_uk {tuple(w_uk)}: must be (H, dn, dc)={(heads, dn, latent[2])}")
    if len(w_uv) != 3 or w_uv[0] != heads or w_uv[2] != latent[2]:
        raise ValueError(f"w_uv {tuple(w_uv)}: must be (H, dv, dc) with H={heads}, dc={latent[2]}")
    if k_rope[2] != q_rope[3]:
        raise ValueError(f"k_rope {tuple(k_rope)}: its last dimension must be dr={q_rope[3]}")
    if call.block_table is None and latent[0] != batch:
        raise ValueError(f"latent {tuple(latent)}: its batch must be that of q_nope, {batch}")
    for name, value in (("seq_lens", call.seq_lens), ("block_table", call.block_table)):
        if value is not None and (value.shape[0] != batch or value.is_floating_point()):
            raise ValueError(
                f"{name} {tuple(value.shape)} {value.dtype}: must be integers, one row a sequence (B={batch})"
            )
    if call.block_table is not None and call.seq_lens is None:
        raise ValueError("seq_lens: a paged cache (block_table) needs the lengths of its sequences")


def op_of(form: str, call: MlaAttention) -> str:
    """The op that computes the call in this form."""
    if form == "auto":
        wins = absorbed_wins(
            call.q_nope.shape[1], call.total, call.latent.shape[2], call.w_uk.shape[1], call.w_uv.shape[1]
        )
        return "mla_absorbed" if wins else "mla_decompressed"
    if form not in FORMS:
        raise ValueError(f"form={form!r}: allowed are {', '.join(FORMS)}")
    return f"mla_{form}"


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
    form: "absorbed" (`mla_absorbed`: folds the queries through w_uk, keys are never rebuilt), "decompressed"
    (`mla_decompressed`: rebuilds keys and values), or "auto" for the one with fewer FLOPs.

    Raises:
        ValueError: when shapes do not agree, the form is unknown, or a paged cache comes without seq_lens.
    """
    call = MlaAttention(q_nope, q_rope, latent, k_rope, w_uk, w_uv, scale, causal, seq_lens, block_table)
    _check(call)
    op = op_of(form, call)
    if device := direct(q_nope):
        out, lse = dispatch.select(op, device, call)(call)
    else:
        tensors = autocast(q_nope, q_rope, latent, k_rope, w_uk, w_uv)
        run = torch.ops.openmythos.mla_absorbed if op == "mla_absorbed" else torch.ops.openmythos.mla_decompressed
        out, lse = run(*tensors, scale, causal, seq_lens, block_table)
    return (out, lse) if return_lse else out
