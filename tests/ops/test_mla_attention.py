"""mla_attention: every backend in both forms, ragged, strided, causal and not, with odd sizes."""

from __future__ import annotations

import pytest
import torch

from openmythos import ops, reference
from openmythos.ops.mla_attention import absorbed_wins
from tests.backends import Entry, each_entry
from tests.cases import check_entry, check_repeatable, each_dtype, randn, strided
from tests.cases.mla_attention import CAUSAL, FORMS, MODELS, attention_inputs, paged
from tests.tolerances import FLOAT16_PRODUCTS, assert_close, errors

REFERENCE = {"absorbed": reference.mla_absorbed, "decompressed": reference.mla_decompressed}
# Both ops have the same backends.
each_form = each_entry("mla_absorbed")


def of(entry: Entry, form: str) -> Entry:
    """The same backend's entry of the op that computes this form."""
    return entry._replace(op=f"mla_{form}")


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
    "15 rows of one token and head": (2, 3, 40, 5, (24, 6, 40, 24)),
    "latent over 512": (1, 2, 135, 3, (10, 6, 521, 9)),
}
each_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())


@each_form
@each_dtype
@FORMS
@CAUSAL
@each_size
def test_forward(entry: Entry, dtype: torch.dtype, form: str, causal: bool, size: tuple) -> None:
    args = attention_inputs(*size, dtype)
    out, lse = check_entry(of(entry, form), REFERENCE[form], (*args, 0.11, causal, None, None), dtype)
    batch, new, _, heads, dims = size
    assert out.shape == (batch, new, heads, dims[3])
    assert lse.shape == (batch, heads, new)
    assert lse.dtype == torch.float32


@each_form
@FORMS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_dimensions_of_the_models(entry: Entry, dtype: torch.dtype, form: str, model: tuple) -> None:
    """Two tokens over 37 keys, the second sequence shorter: rows (token, head) share tiles.

    Decompressed, the heads are independent of each other, and three are enough.
    """
    heads, dims = model
    heads = heads if form == "absorbed" else 3
    args = attention_inputs(2, 2, 37, heads, dims, dtype)
    call = (*args, (dims[0] + dims[1]) ** -0.5, True, torch.tensor([37, 20]), None)
    check_entry(of(entry, form), REFERENCE[form], call, dtype)


@each_form
@each_dtype
@pytest.mark.parametrize("dc", [40, 521], ids=["narrow", "wide"])
def test_many_splits_of_the_keys(entry: Entry, dtype: torch.dtype, dc: int) -> None:
    """1000 keys in several splits, many of which are empty for the shorter sequences."""
    args = attention_inputs(4, 1, 1000, 3, (16, 8, dc, 24), dtype)
    lengths = torch.tensor([1000, 257, 5, 0], dtype=torch.int32)
    for b, length in enumerate(lengths):
        args[2][b, length:] = float("nan")
        args[3][b, length:] = float("nan")
    call = (*args, 0.2, True, lengths, None)
    out, lse = check_entry(of(entry, "absorbed"), reference.mla_absorbed, call, dtype)
    assert out[3].eq(0).all()
    assert lse[3].eq(float("-inf")).all()
    check_repeatable(of(entry, "absorbed"), call)


@each_form
@each_dtype
@FORMS
@CAUSAL
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_ragged_lengths_with_nan_past_them(
    entry: Entry, dtype: torch.dtype, form: str, causal: bool, index: torch.dtype
) -> None:
    args = attention_inputs(5, 3, 67, 3, (13, 6, 37, 17), dtype)
    lengths = torch.tensor([67, 3, 33, 1, 0], dtype=index)
    for b, length in enumerate(lengths):
        args[2][b, length:] = float("nan")
        args[3][b, length:] = float("nan")
    out, lse = check_entry(of(entry, form), REFERENCE[form], (*args, 0.2, causal, lengths, None), dtype)
    assert out[4].eq(0).all()
    assert lse[4].eq(float("-inf")).all()
    if causal:
        assert out[3, :2].eq(0).all(), "queries before the first key see nothing"
        assert lse[3, :, :2].eq(float("-inf")).all()
    assert out[3, 2].isfinite().all()


@each_form
@each_dtype
@FORMS
def test_strided_operands(entry: Entry, dtype: torch.dtype, form: str) -> None:
    args = [strided(part) for part in attention_inputs(2, 5, 33, 3, (13, 6, 37, 17), dtype)]
    check_entry(of(entry, form), REFERENCE[form], (*args, 0.2, True, None, None), dtype)
    queries = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in args[:2]]
    check_entry(of(entry, form), REFERENCE[form], (*queries, *args[2:], 0.2, True, None, None), dtype)


@each_form
@FORMS
def test_large_scores_do_not_overflow(entry: Entry, form: str) -> None:
    """One key wins by hundreds: softmax stays finite and picks it."""
    args = attention_inputs(1, 3, 65, 2, (16, 8, 24, 16))
    args[0] = args[0] * 100
    found = of(entry, form).call(*args, 1.0, False, None, None)[0]
    truth = REFERENCE[form](*(part.double() for part in args), 1.0, False, None, None)[0]
    plain = REFERENCE[form](*args, 1.0, False, None, None)[0]
    assert_close("out", found, truth, plain, torch.float32)


@each_form
@FORMS
def test_not_a_number_in_a_visible_key_shows(entry: Entry, form: str) -> None:
    args = attention_inputs(2, 1, 33, 2, (16, 8, 24, 16))
    args[2][1, 7, 3] = float("nan")
    out = of(entry, form).call(*args, 0.2, True, None, None)[0]
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


@each_form
@each_dtype
@FORMS
@pytest.mark.parametrize(("new", "total"), [(1, 1000), (33, 129)])
def test_repeatable(entry: Entry, dtype: torch.dtype, form: str, new: int, total: int) -> None:
    args = attention_inputs(1, new, total, 3, (16, 8, 40, 24), dtype)
    call = (*args, 0.2, True, None, None)
    check_repeatable(of(entry, form), call)
    check_entry(of(entry, form), REFERENCE[form], call, dtype)


@each_form
@each_dtype
@FORMS
def test_a_sequence_alone_equals_the_sequence_in_a_batch(entry: Entry, dtype: torch.dtype, form: str) -> None:
    args = attention_inputs(3, 5, 63, 3, (13, 6, 37, 17), dtype)
    tail = (0.2, True, None, None)
    truth = REFERENCE[form](*(part.double() for part in args), *tail)[0]
    for b in range(3):
        alone = [part[b : b + 1] for part in args[:4]] + args[4:]
        plain = REFERENCE[form](*alone, *tail)[0]
        assert_close("sequence alone", of(entry, form).call(*alone, *tail)[0], truth[b : b + 1], plain, dtype)


@each_form
@each_dtype
@FORMS
@CAUSAL
@pytest.mark.parametrize(
    ("page", "dc", "index"), [(16, 37, torch.int64), (48, 24, torch.int32), (64, 521, torch.int32)], ids=str
)
def test_paged_cache(entry: Entry, dtype: torch.dtype, form: str, causal: bool, page: int, dc: int, index) -> None:
    args = attention_inputs(4, 3, 160, 3, (13, 6, dc, 17), dtype)
    lengths = [151, 16, 2, 0]
    # the reference gathers whole pages, so that it needs ids it can read
    pools, table = paged(args, lengths, page, -1 if entry.backend == "reference" else 2**30)
    lengths = torch.tensor(lengths)
    found = of(entry, form).call(*pools, 0.2, causal, lengths.to(index), table.to(index))
    plain = REFERENCE[form](*args, 0.2, causal, lengths, None)
    truth = REFERENCE[form](*(part.double() for part in args), 0.2, causal, lengths, None)
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
            out = reference.mla_decompressed(*leaves, 0.2, causal, lengths)[0]
        found.append(torch.autograd.grad((out * outer.to(cast)).sum(), leaves))
    names = ("q_nope", "q_rope", "latent", "k_rope", "w_uk", "w_uv")
    for name, mine, true, plain in zip(names, *found, strict=True):
        assert_close(f"gradient of {name}", mine, true, plain, dtype, limits=FLOAT16_PRODUCTS)


BACKWARD = {
    "few numbers": (1, 2, 5, 1, (3, 2, 5, 3)),
    "a tile and more": (2, 65, 65, 2, (97, 32, 131, 47)),
    "chunk": (1, 7, 129, 4, (13, 10, 37, 97)),
    "no queries": (2, 0, 5, 2, (8, 4, 16, 8)),
    "no keys": (2, 2, 0, 2, (8, 4, 16, 8)),
    "3b": (1, 33, 70, 2, (96, 32, 384, 96)),
    "10b": (1, 17, 40, 2, (128, 64, 512, 128)),
}
GRADIENTS = ("q_nope", "q_rope", "latent", "k_rope", "w_uk", "w_uv")


def check_backward(
    entry: Entry, args: list[torch.Tensor], scale: float, causal: bool, lengths=None
) -> list[torch.Tensor]:
    """Check every gradient of a backend against the tolerances."""
    dtype = args[0].dtype
    tail = (scale, causal, lengths)
    forward = reference.mla_decompressed(*args, *tail)
    grad = randn(*forward[0].shape, dtype=dtype)
    found = entry.call(grad, *args, *forward, *tail)
    plain = reference.mla_attention_backward(grad, *args, *forward, *tail)
    truth = reference.mla_attention_backward(
        *(part.double() for part in (grad, *args)),
        *reference.mla_decompressed(*(part.double() for part in args), *tail),
        *tail,
    )
    for name, part, mine, other, true in zip(GRADIENTS, args, found, plain, truth, strict=True):
        assert mine.shape == part.shape, name
        assert mine.dtype == dtype, name
        assert mine.is_contiguous(), name
        assert_close(f"gradient of {name}", mine, true, other, dtype, limits=FLOAT16_PRODUCTS)
    again = entry.call(grad, *args, *forward, *tail)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True)), "two runs differ"
    return list(found)


@each_entry("mla_attention_backward")
@each_dtype
@CAUSAL
@pytest.mark.parametrize("size", BACKWARD.values(), ids=BACKWARD.keys())
def test_backward(entry: Entry, dtype: torch.dtype, causal: bool, size: tuple) -> None:
    dims = size[4]
    check_backward(entry, attention_inputs(*size, dtype), (dims[0] + dims[1]) ** -0.5, causal)


@each_entry("mla_attention_backward")
@each_dtype
@CAUSAL
def test_backward_of_ragged_lengths_with_nan_past_them(entry: Entry, dtype: torch.dtype, causal: bool) -> None:
    args = attention_inputs(5, 3, 67, 3, (13, 6, 37, 17), dtype)
    lengths = torch.tensor([67, 3, 33, 1, 0])
    for b, length in enumerate(lengths):
        args[2][b, length:] = float("nan")
        args[3][b, length:] = float("nan")
    found = check_backward(entry, args, 0.2, causal, lengths)
    for b, length in enumerate(lengths):
        assert found[2][b, length:].eq(0).all()
        assert found[3][b, length:].eq(0).all()


@each_entry("mla_attention_backward")
@each_dtype
def test_backward_of_strided_operands(entry: Entry, dtype: torch.dtype) -> None:
    args = [strided(part) for part in attention_inputs(2, 5, 33, 3, (13, 6, 37, 17), dtype)]
    check_backward(entry, args, 0.2, True)


def test_a_paged_cache_has_no_backward() -> None:
    args = attention_inputs(1, 2, 16, 3, (13, 6, 37, 17))
    args[0].requires_grad_()
    with pytest.raises(ValueError, match="block_table"):
        ops.mla_attention(
            *args, scale=0.2, causal=True, seq_lens=torch.tensor([9]), block_table=torch.zeros(1, 1, dtype=torch.int32)
        )
