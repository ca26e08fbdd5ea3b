"""mla_decompressed as gfx1151 code on the emulator, against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from openmythos import reference
from tests.cases.mla_attention import attention_inputs, paged
from tests.native import calls
from tests.native.emulated import Emulated
from tests.tolerances import assert_close
from tools import gfx1151_emulator as emulator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulator.missing() is not None, reason=f"{emulator.missing()}"),
]

each_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
# (dn, dr, dc, dv)
HEADS = {"1b": (64, 32, 256, 64), "3b": (96, 32, 384, 96), "10b": (128, 64, 512, 128)}
each_head = pytest.mark.parametrize("dims", HEADS.values(), ids=HEADS.keys())


def check(emulated: Emulated, args: list, causal: bool, lengths=None) -> list[torch.Tensor]:
    """Check out and lse against the tolerances."""
    scale = (args[0].shape[3] + args[1].shape[3]) ** -0.5
    call = (*args, scale, causal, lengths, None)
    return emulated.check(calls.mla_decompressed, reference.mla_decompressed, call, [args[0].dtype] * 2)


@each_dtype
@each_head
@pytest.mark.parametrize(
    ("new", "total", "heads", "causal"),
    [(17, 17, 3, True), (100, 128, 1, True), (129, 129, 2, True), (129, 200, 1, True), (17, 70, 3, False)],
    ids=["17", "100 of 128", "129", "129 after a prefix", "17 see all"],
)
def test_every_instance(
    emulated: Emulated, dtype: torch.dtype, dims: tuple, new: int, total: int, heads: int, causal: bool
) -> None:
    check(emulated, attention_inputs(1, new, total, heads, dims, dtype), causal)
    gathered = ["openmythos_mla_decompressed_gather"] if total % 64 else []
    name = {torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    assert emulated.kernels == [*gathered, f"openmythos_mla_decompressed_{name}_{dims[0]}_{dims[1]}_{dims[3]}"]


@each_dtype
@each_head
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_ragged_lengths_with_nan_past_them(emulated: Emulated, dtype: torch.dtype, dims: tuple, causal: bool) -> None:
    """Shorter than the queries, a single key, and none; memory that no kernel may read holds NaN."""
    args = attention_inputs(4, 33, 131, 2, dims, dtype)
    lengths = torch.tensor([131, 20, 1, 0], dtype=torch.int32)
    for b, length in enumerate(lengths):
        args[2][b, length:] = float("nan")
        args[3][b, length:] = float("nan")
    out, lse = check(emulated, args, causal, lengths)
    assert out[3].eq(0).all()
    assert lse[3].eq(float("-inf")).all()
    if causal:
        assert out[2, :32].eq(0).all(), "queries before the first key see nothing"
        assert lse[2, :, :32].eq(float("-inf")).all()


@each_dtype
@each_head
@pytest.mark.parametrize(("page", "index"), [(16, torch.int64), (48, torch.int32), (5, torch.int32)], ids=str)
def test_paged_cache(emulated: Emulated, dtype: torch.dtype, dims: tuple, page: int, index: torch.dtype) -> None:
    """Shuffled pages whose unused slots are NaN; page ids past the length are invalid."""
    args = attention_inputs(3, 17, 80, 2, dims, dtype)
    lengths = torch.tensor([71, 16, 1])
    pools, table = paged(args, lengths.tolist(), page, 2**30)
    found = emulated.call(calls.mla_decompressed, (*pools, 0.1, True, lengths.to(index), table.to(index)))
    plain = reference.mla_decompressed(*args, 0.1, True, lengths, None)
    truth = reference.mla_decompressed(*(part.double() for part in args), 0.1, True, lengths, None)
    for name, mine, true, other in zip(("out", "lse"), found, truth, plain, strict=True):
        assert_close(name, mine, true, other, dtype)


@each_dtype
@each_head
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_many_tiles(emulated: Emulated, dtype: torch.dtype, dims: tuple, causal: bool) -> None:
    check(emulated, attention_inputs(1, 300, 700, 2, dims, dtype), causal)


@each_dtype
def test_strided_queries_and_shuffled_axes(emulated: Emulated, dtype: torch.dtype) -> None:
    """Queries that are two halves of one tensor with the heads outermost, and a cache with the keys outermost."""
    args = attention_inputs(2, 40, 64, 3, HEADS["3b"], dtype)
    joint = torch.cat(args[:2], -1).transpose(1, 2).contiguous().transpose(1, 2)
    args[0], args[1] = joint[..., :96], joint[..., 96:]
    args[2:4] = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in args[2:4]]
    check(emulated, args, True)


@each_dtype
def test_more_sequences_and_heads_than_a_power_of_two(emulated: Emulated, dtype: torch.dtype) -> None:
    check(emulated, attention_inputs(3, 18, 64, 7, HEADS["1b"], dtype), True)


@each_dtype
@each_head
@pytest.mark.parametrize("heads", [24, 48])
def test_heads_of_the_models(emulated: Emulated, dtype: torch.dtype, dims: tuple, heads: int) -> None:
    check(emulated, attention_inputs(1, 17, 64, heads, dims, dtype), True)


@each_dtype
def test_few_tokens_where_the_form_is_asked_for(emulated: Emulated, dtype: torch.dtype) -> None:
    check(emulated, attention_inputs(2, 1, 67, 3, HEADS["1b"], dtype), True)


@each_dtype
def test_no_keys(emulated: Emulated, dtype: torch.dtype) -> None:
    args = attention_inputs(2, 17, 0, 3, HEADS["1b"], dtype)
    out, lse = emulated.call(calls.mla_decompressed, (*args, 1.0, True, None, None))
    assert out.eq(0).all()
    assert lse.eq(float("-inf")).all()


@each_dtype
def test_large_scores_do_not_overflow(emulated: Emulated, dtype: torch.dtype) -> None:
    args = attention_inputs(1, 20, 130, 2, HEADS["1b"], dtype)
    args[0] = args[0] * 30
    check(emulated, args, False)


@each_dtype
def test_a_negative_scale(emulated: Emulated, dtype: torch.dtype) -> None:
    args = attention_inputs(1, 20, 70, 2, HEADS["1b"], dtype)
    call = (*args, -0.1, True, None, None)
    emulated.check(calls.mla_decompressed, reference.mla_decompressed, call, [dtype] * 2)


@each_dtype
def test_not_a_number_in_a_visible_key_shows(emulated: Emulated, dtype: torch.dtype) -> None:
    """Every query after it is NaN, and no query of another sequence or of an earlier tile."""
    args = attention_inputs(2, 150, 150, 2, HEADS["1b"], dtype)
    args[2][1, 140, 3] = float("nan")
    out = emulated.call(calls.mla_decompressed, (*args, 0.2, True, None, None))[0]
    assert out[0].isfinite().all()
    assert out[1, :128].isfinite().all()
    assert out[1, 140:].isnan().all()


@each_dtype
@each_head
def test_two_runs_are_equal(emulated: Emulated, dtype: torch.dtype, dims: tuple) -> None:
    args = attention_inputs(2, 129, 140, 2, dims, dtype)
    call = (*args, 0.1, True, torch.tensor([140, 77]), None)
    first, second = (emulated.call(calls.mla_decompressed, call) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@each_dtype
def test_heads_in_groups_give_what_all_at_once_give(emulated: Emulated, dtype: torch.dtype) -> None:
    """Above 1 GiB of keys and values the heads run in groups; each head alone gives the same result as all at once."""
    args = attention_inputs(1, 20, 70, 5, HEADS["1b"], dtype)
    tail = (0.1, True, None, None)
    whole = emulated.call(calls.mla_decompressed, (*args, *tail))
    for head in range(5):
        one = slice(head, head + 1)
        part = (args[0][:, :, one], args[1][:, :, one], *args[2:4], args[4][one], args[5][one])
        out, lse = emulated.call(calls.mla_decompressed, (*part, *tail))
        assert torch.equal(out, whole[0][:, :, one])
        assert torch.equal(lse, whole[1][:, one])
