"""mla_attention: every backend in both forms, ragged, strided, causal and not, with odd sizes."""

from __future__ import annotations

import pytest
import torch

from openmythos import ops, reference
from openmythos.ops.mla_attention import absorbed_wins
from tests.backends import Row, each_row
from tests.ops.cases import check_repeatable, check_row, each_dtype, randn, strided
from tests.tolerances import FLOAT16_PRODUCTS, assert_close, errors

FORMS = pytest.mark.parametrize("form", ["absorbed", "decompressed"])
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])


def attention_inputs(
    batch: int, new: int, total: int, heads: int, dims: tuple[int, int, int, int], dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """(q_nope, q_rope, latent, k_rope, w_uk, w_uv) as a model makes them: views of joint tensors."""
    dn, dr, dc, dv = dims
    cache = randn(batch, total, dc + dr, dtype=dtype)
    weight = randn(heads, dn + dv, dc, dtype=dtype, scale=dc**-0.5)
    q_nope, q_rope = randn(batch, new, heads, dn, dtype=dtype, scale=2), randn(batch, new, heads, dr, dtype=dtype)
    return [q_nope, q_rope, cache[..., :dc], cache[..., dc:], weight[:, :dn], weight[:, dn:]]


# (B, T, S, H, (dn, dr, dc, dv))
SIZES = {
    "one number": (1, 1, 1, 1, (1, 2, 1, 1)),
    "decode": (2, 1, 129, 16, (64, 32, 256, 64)),
    "24 heads": (1, 2, 63, 24, (31, 6, 47, 29)),
    "prefill": (2, 63, 63, 3, (97, 32, 131, 47)),
    "chunk": (1, 7, 129, 4, (13, 10, 37, 97)),
    "one key more": (1, 64, 65, 2, (16, 8, 24, 16)),
    "129 queries": (1, 129, 129, 2, (8, 4, 16, 8)),
    "no queries": (2, 0, 5, 2, (8, 4, 16, 8)),
}
each_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())


@each_row("mla_attention")
@each_dtype
@FORMS
@CAUSAL
@each_size
def test_forward(row: Row, dtype: torch.dtype, form: str, causal: bool, size: tuple) -> None:
    args = attention_inputs(*size, dtype)
    out, lse = check_row(row, reference.mla_attention, (*args, 0.11, causal, None, None, form), dtype)
    batch, new, _, heads, dims = size
    assert out.shape == (batch, new, heads, dims[3])
    assert lse.shape == (batch, heads, new)
    assert lse.dtype == torch.float32


@each_row("mla_attention")
@each_dtype
@FORMS
@CAUSAL
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_ragged_lengths_with_nan_past_them(
    row: Row, dtype: torch.dtype, form: str, causal: bool, index: torch.dtype
) -> None:
    args = attention_inputs(5, 3, 67, 3, (13, 6, 37, 17), dtype)
    lengths = torch.tensor([67, 3, 33, 1, 0], dtype=index)
    for b, length in enumerate(lengths):
        args[2][b, length:] = float("nan")
        args[3][b, length:] = float("nan")
    out, lse = check_row(row, reference.mla_attention, (*args, 0.2, causal, lengths, None, form), dtype)
    assert out[4].eq(0).all()
    assert lse[4].eq(float("-inf")).all()
    if causal:
        assert out[3, :2].eq(0).all(), "queries before the first key see nothing"
        assert lse[3, :, :2].eq(float("-inf")).all()
    assert out[3, 2].isfinite().all()


@each_row("mla_attention")
@each_dtype
@FORMS
def test_strided_operands(row: Row, dtype: torch.dtype, form: str) -> None:
    args = [strided(part) for part in attention_inputs(2, 5, 33, 3, (13, 6, 37, 17), dtype)]
    check_row(row, reference.mla_attention, (*args, 0.2, True, None, None, form), dtype)
    queries = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in args[:2]]
    check_row(row, reference.mla_attention, (*queries, *args[2:], 0.2, True, None, None, form), dtype)


@each_row("mla_attention")
@FORMS
def test_large_scores_do_not_overflow(row: Row, form: str) -> None:
    """One key wins by hundreds: softmax stays finite and picks it."""
    args = attention_inputs(1, 3, 65, 2, (16, 8, 24, 16))
    args[0] = args[0] * 100
    found = row.call(*args, 1.0, False, None, None, form)[0]
    truth = reference.mla_attention(*(part.double() for part in args), 1.0, False, None, None, form)[0]
    plain = reference.mla_attention(*args, 1.0, False, None, None, form)[0]
    assert_close("out", found, truth, plain, torch.float32)


@each_row("mla_attention")
@FORMS
def test_not_a_number_in_a_visible_key_shows(row: Row, form: str) -> None:
    args = attention_inputs(2, 1, 33, 2, (16, 8, 24, 16))
    args[2][1, 7, 3] = float("nan")
    out = row.call(*args, 0.2, True, None, None, form)[0]
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


@each_row("mla_attention")
@each_dtype
@FORMS
@pytest.mark.parametrize(("new", "total"), [(1, 1000), (33, 129)])
def test_repeatable(row: Row, dtype: torch.dtype, form: str, new: int, total: int) -> None:
    args = attention_inputs(1, new, total, 3, (16, 8, 40, 24), dtype)
    call = (*args, 0.2, True, None, None, form)
    check_repeatable(row, call)
    check_row(row, reference.mla_attention, call, dtype)


@each_row("mla_attention")
@each_dtype
@FORMS
def test_a_sequence_alone_equals_the_sequence_in_a_batch(row: Row, dtype: torch.dtype, form: str) -> None:
    args = attention_inputs(3, 5, 63, 3, (13, 6, 37, 17), dtype)
    tail = (0.2, True, None, None, form)
    truth = reference.mla_attention(*(part.double() for part in args), *tail)[0]
    for b in range(3):
        alone = [part[b : b + 1] for part in args[:4]] + args[4:]
        plain = reference.mla_attention(*alone, *tail)[0]
        assert_close("sequence alone", row.call(*alone, *tail)[0], truth[b : b + 1], plain, dtype)


@each_row("mla_attention")
@each_dtype
@FORMS
def test_paged_cache(row: Row, dtype: torch.dtype, form: str) -> None:
    args = attention_inputs(2, 3, 32, 3, (13, 6, 37, 17), dtype)
    pool = [randn(9, 16, width, dtype=dtype) for width in (37, 6)]
    table = torch.tensor([[7, 2], [4, -1]], dtype=torch.int32)
    lengths = torch.tensor([29, 11])
    for b, pages in enumerate(table.tolist()):
        for slot, page in enumerate(pages):
            if page >= 0:
                for part in range(2):
                    pool[part][page] = args[2 + part][b, 16 * slot : 16 * slot + 16]
    paged = [*args[:2], *pool, *args[4:], 0.2, True, lengths, table, form]
    found = row.call(*paged)
    plain = reference.mla_attention(*args, 0.2, True, lengths, None, form)
    truth = reference.mla_attention(*(part.double() for part in args), 0.2, True, lengths, None, form)
    for name, mine, true, other in zip(("out", "lse"), found, truth, plain, strict=True):
        assert_close(name, mine, true, other, dtype)


def test_auto_takes_the_form_with_fewer_flops() -> None:
    dims = {"dc": 256, "dn": 64, "dv": 64}
    assert absorbed_wins(1, 4096, **dims)
    assert absorbed_wins(83, 1_000_000, **dims)
    assert not absorbed_wins(86, 1_000_000, **dims)
    assert not absorbed_wins(128, 128, **dims)
    args = attention_inputs(1, 2, 63, 3, (13, 6, 37, 17))
    both = [
        ops.mla_attention(*args, scale=0.2, causal=True, form=form) for form in ("auto", "absorbed", "decompressed")
    ]
    for form in both[1:]:
        assert errors(both[0], form).frobenius < 1e-6


def test_return_lse() -> None:
    args = attention_inputs(1, 2, 9, 3, (13, 6, 37, 17))
    out, lse = ops.mla_attention(*args, scale=0.2, causal=True, return_lse=True)
    assert torch.equal(out, ops.mla_attention(*args, scale=0.2, causal=True))
    keys = torch.einsum("bsc,hnc->bhsn", args[2], args[4])
    scores = torch.einsum("bthn,bhsn->bhts", args[0], keys) + torch.einsum("bthr,bsr->bhts", args[1], args[3])
    mask = torch.ones(2, 9).tril(7).log()
    torch.testing.assert_close(lse, (scores * 0.2 + mask).logsumexp(-1), rtol=1e-4, atol=1e-4)


@each_dtype
@CAUSAL
@pytest.mark.parametrize("ragged", [False, True], ids=["equal", "ragged"])
def test_gradients(dtype: torch.dtype, causal: bool, ragged: bool) -> None:
    args = attention_inputs(3, 7, 19, 3, (13, 6, 37, 17), dtype)
    lengths = torch.tensor([19, 11, 2]) if ragged else None
    outer, found = randn(3, 7, 3, 17), []
    for cast, function in ((dtype, ops), (torch.float64, reference), (dtype, reference)):
        leaves = [part.to(cast).clone().requires_grad_() for part in args]
        if function is ops:
            out = ops.mla_attention(*leaves, scale=0.2, causal=causal, seq_lens=lengths)
        else:
            out = reference.mla_attention(*leaves, 0.2, causal, lengths)[0]
        found.append(torch.autograd.grad((out * outer.to(cast)).sum(), leaves))
    names = ("q_nope", "q_rope", "latent", "k_rope", "w_uk", "w_uv")
    for name, mine, true, plain in zip(names, *found, strict=True):
        assert_close(f"gradient of {name}", mine, true, plain, dtype, limits=FLOAT16_PRODUCTS)


def test_a_paged_cache_has_no_backward() -> None:
    args = attention_inputs(1, 2, 16, 3, (13, 6, 37, 17))
    args[0].requires_grad_()
    with pytest.raises(ValueError, match="block_table"):
        ops.mla_attention(
            *args, scale=0.2, causal=True, seq_lens=torch.tensor([9]), block_table=torch.zeros(1, 1, dtype=torch.int32)
        )
