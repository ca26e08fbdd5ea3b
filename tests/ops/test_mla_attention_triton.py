"""What only the Triton kernels of mla_attention have: segments of long contexts, counts of shares, refusals."""

from __future__ import annotations

import pytest
import torch

from openmythos import reference
from openmythos.backends import sdpa
from openmythos.backends.triton import mla_attention as backend
from openmythos.backends.triton import rows
from tests.ops.cases import each_dtype, randn
from tests.ops.test_mla_attention import CAUSAL, FORMS, attention_inputs, paged
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(
    rows.missing() is not None or not rows.INTERPRETED, reason="needs Triton and TRITON_INTERPRET=1"
)


@each_dtype
@CAUSAL
@pytest.mark.parametrize("pages", [False, True], ids=["plain", "paged"])
@pytest.mark.parametrize("form", ["wide", "decompressed"])
def test_segments_of_a_long_context(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, causal: bool, pages: bool, form: str
) -> None:
    """With room for one tile of keys at a time, every tile is a segment."""
    from openmythos.triton_kernels.mla_attention import decode, mla_attention, prefill, wide

    monkeypatch.setattr(wide, "WORKSPACE", 1)
    monkeypatch.setattr(prefill, "WORKSPACE", 1)
    monkeypatch.setattr(decode, "WIDEST", 16)
    args = attention_inputs(3, 5, 333, 3, (13, 6, 37, 17), dtype)
    lengths = torch.tensor([333, 140, 0])
    name = "absorbed" if form == "wide" else form
    inputs, table = paged(args, lengths.tolist(), 16, 2**30) if pages else (args, None)
    found = mla_attention(*inputs, 0.2, causal, lengths, table, name)
    plain = reference.mla_attention(*args, 0.2, causal, lengths, None, name)
    truth = reference.mla_attention(*(part.double() for part in args), 0.2, causal, lengths, None, name)
    for output, mine, true, other in zip(("out", "lse"), found, truth, plain, strict=True):
        assert_close(output, mine, true, other, dtype)


@FORMS
def test_weights_that_are_not_halves_of_one_tensor(form: str) -> None:
    from openmythos.triton_kernels.mla_attention import mla_attention

    args = attention_inputs(2, 3, 33, 3, (13, 6, 37, 17))
    apart = [*args[:4], *(weight.clone() for weight in args[4:])]
    tail = (0.2, True, None, None, form)
    for mine, other in zip(mla_attention(*args, *tail), mla_attention(*apart, *tail), strict=True):
        assert torch.equal(mine, other)


def test_shares_depend_on_shapes_only() -> None:
    from openmythos.triton_kernels.mla_attention.tiles import MAX_SPLITS, split_count

    assert split_count(1, 4096, 264, 128) == 32
    assert split_count(1, 1_000_000, 264, 128) == MAX_SPLITS
    assert split_count(128, 8192, 264, 128) == 2
    assert split_count(1000, 8192, 264, 128) == 1
    assert split_count(1, 0, 264, 128) == 1
    assert split_count(0, 4096, 264, 128) >= 1


def test_widths_are_cut_without_rounding_up_to_a_power_of_two() -> None:
    from openmythos.triton_kernels.mla_attention.tiles import pieces

    assert [pieces(width) for width in (64, 96, 128, 256, 384, 512)] == [
        (64, 0), (64, 32), (128, 0), (256, 0), (256, 128), (512, 0),
    ]  # fmt: skip
    for width in range(1, 513):
        one, two = pieces(width)
        assert width <= one + two < 2 * width + 16
        assert all(piece == 0 or (piece >= 16 and piece & (piece - 1) == 0) for piece in (one, two))


NAMES = ("q_nope", "q_rope", "latent", "k_rope", "w_uk", "w_uv")


def refusal(dims: tuple = (13, 6, 37, 17), table: torch.Tensor | None = None, **changes: torch.Tensor) -> str | None:
    args = dict(zip(NAMES, attention_inputs(1, 1, 32, 3, dims), strict=True)) | changes
    return backend._supports(*args.values(), 0.2, True, None, table, "absorbed")


def test_refusals_name_their_reason() -> None:
    assert refusal() is None
    assert "dn=257" in refusal((257, 6, 37, 17))
    assert "dv=300" in refusal((13, 6, 37, 300))
    assert "dr=130" in refusal((13, 130, 37, 17))
    assert "different dtypes" in refusal(q_nope=torch.zeros(1, 1, 3, 13, dtype=torch.float16))
    assert "multiples of 16" in refusal(latent=randn(4, 8, 37), k_rope=randn(4, 8, 6), table=torch.zeros(1, 2))
    assert "not contiguous" in refusal(q_rope=randn(1, 1, 6, 3).mT)
    huge = torch.zeros(1, 1, 3, 13).expand(70000, 1, 3, 13)
    assert "70000 sequences" in refusal(q_nope=huge)


@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
@pytest.mark.parametrize(("new", "total", "causal"), [(65, 65, True), (7, 65, False), (1, 65, True)])
def test_flash_attention_of_torch(dtype: torch.dtype, new: int, total: int, causal: bool) -> None:
    args = attention_inputs(2, new, total, 3, (96, 32, 131, 47), dtype)
    found = sdpa.attend(*args, 0.11, causal)
    plain = reference.mla_attention(*args, 0.11, causal)
    truth = reference.mla_attention(*(part.double() for part in args), 0.11, causal)
    for name, mine, true, other in zip(("out", "lse"), found, truth, plain, strict=True):
        assert mine.shape == other.shape
        assert_close(name, mine, true, other, dtype)
