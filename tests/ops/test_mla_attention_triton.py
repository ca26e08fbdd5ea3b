"""Only for the Triton kernels of mla_attention: segments of long contexts, the number of splits, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from openmythos import reference
from openmythos.backends import triton as backend
from openmythos.backends.torch import flash_attention
from openmythos.ops.mla_attention import MlaAttention, MlaAttentionBackward
from tests.cases import check_outputs, each_dtype, randn
from tests.cases.mla_attention import CAUSAL, FORMS, attention_inputs, paged
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(
    backend.missing() is not None or not backend.INTERPRETED, reason="needs Triton and TRITON_INTERPRET=1"
)


def run(form: str, *args: object) -> tuple[torch.Tensor, torch.Tensor]:
    """The launcher of this form on the arguments of its op."""
    from openmythos.triton_kernels import mla_attention

    return getattr(mla_attention, f"mla_{form}")(MlaAttention(*args))


@each_dtype
@CAUSAL
@pytest.mark.parametrize("pages", [False, True], ids=["plain", "paged"])
@pytest.mark.parametrize("form", ["wide", "decompressed"])
def test_segments_of_a_long_context(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, causal: bool, pages: bool, form: str
) -> None:
    """With room for one tile of keys at a time, every tile is a segment."""
    from openmythos.triton_kernels.mla_attention import absorbed, absorbed_wide, decompressed

    monkeypatch.setattr(absorbed_wide, "WORKSPACE", 1)
    monkeypatch.setattr(decompressed, "WORKSPACE", 1)
    monkeypatch.setattr(absorbed, "WIDEST", 16)
    args = attention_inputs(3, 5, 333, 3, (13, 6, 37, 17), dtype)
    lengths = torch.tensor([333, 140, 0])
    name = "absorbed" if form == "wide" else form
    inputs, table = paged(args, lengths.tolist(), 16, 2**30) if pages else (args, None)
    found = run(name, *inputs, 0.2, causal, lengths, table)
    plain = getattr(reference, f"mla_{name}")(*args, 0.2, causal, lengths, None)
    truth = getattr(reference, f"mla_{name}")(*(part.double() for part in args), 0.2, causal, lengths, None)
    for output, mine, true, other in zip(("out", "lse"), found, truth, plain, strict=True):
        assert_close(output, mine, true, other, dtype)


def launched(arch: str, form: str, *args: object) -> list[Any]:
    """The launches of a call on meta tensors, none of which runs."""
    from openmythos.triton_kernels.launch import TARGETS, executing

    found = []
    with executing(TARGETS[arch], found.append):
        run(form, *args)
    return found


def meta_inputs(batch: int, new: int, total: int, heads: int, dims: tuple, dtype: torch.dtype) -> list[torch.Tensor]:
    dn, dr, dc, dv = dims
    shapes = (batch, new, heads, dn), (batch, new, heads, dr), (batch, total, dc), (batch, total, dr)
    return [torch.empty(shape, dtype=dtype, device="meta") for shape in (*shapes, (heads, dn, dc), (heads, dv, dc))]


ARCHS = pytest.mark.parametrize("arch", ["sm80", "sm90", "sm100", "gfx1151"])


@ARCHS
@each_dtype
def test_segments_times_splits_stay_within_the_combination(
    monkeypatch: pytest.MonkeyPatch, arch: str, dtype: torch.dtype
) -> None:
    from openmythos.triton_kernels.mla_attention import absorbed_wide
    from openmythos.triton_kernels.mla_attention.tiles import MAX_SPLITS

    monkeypatch.setattr(absorbed_wide, "WORKSPACE", 1)
    for total in (1, 63, 64, 65, 1023, 1025, 2048, 2049, 4095, 8191, 8193, 1_000_003):
        args = meta_inputs(1, 1, total, 1, (16, 16, 1024, 16), dtype)
        found = launched(arch, "absorbed", *args, 0.2, True)
        splits = next(run.args[0].shape[1] for run in found if run.kernel.__name__ == "_mla_combine_kernel")
        assert 1 <= splits <= MAX_SPLITS, total
        assert all(min(run.grid) > 0 for run in found), total


def test_a_key_more_than_the_segments_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 tiles of 32 keys and one key: segments of two tiles, not 65 segments."""
    from openmythos.triton_kernels.mla_attention import absorbed, absorbed_wide

    monkeypatch.setattr(absorbed_wide, "WORKSPACE", 1)
    monkeypatch.setattr(absorbed, "WIDEST", 16)
    args = attention_inputs(1, 1, 64 * 32 + 1, 1, (13, 6, 37, 17))
    found = run("absorbed", *args, 0.2, True)
    check_outputs("mla_attention", found, reference.mla_decompressed, (*args, 0.2, True), torch.float32)


@ARCHS
@pytest.mark.parametrize("form", ["absorbed", "decompressed"])
@pytest.mark.parametrize("dc", [256, 1024], ids=["narrow", "wide"])
def test_grids_fit_what_a_launch_takes(arch: str, form: str, dc: int) -> None:
    """CUDA counts 2**31 - 1 blocks in the first dimension and 65535 in the others."""
    for batch, new, total, heads in ((1, 2**21, 2**21, 1), (65535, 33, 64, 2), (1, 1, 2**24, 1), (1, 2, 64, 32767)):
        args = meta_inputs(batch, new, total, heads, (64, 32, dc, 64), torch.bfloat16)
        for run in launched(arch, form, *args, 0.2, True):
            assert run.grid[0] < 2**31, run
            assert all(count <= 65535 for count in run.grid[1:]), run


def test_a_segment_of_keys_and_values_has_less_than_2_gib() -> None:
    args = meta_inputs(128, 16, 4096, 32, (128, 64, 512, 128), torch.bfloat16)
    runs = launched("gfx1151", "decompressed", *args, 0.2, True)
    assert len(runs) > 1
    assert all(run.args[2].untyped_storage().nbytes() < 2**31 for run in runs)


def apart(x: torch.Tensor, axis: int, distance: int) -> torch.Tensor:
    """x with a stride of `distance` elements along an axis; the memory between is never touched."""
    strides = list(x.stride())
    strides[axis] = distance
    span = sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True)) + 1
    view = torch.empty(span, dtype=x.dtype).as_strided(x.shape, strides)
    return view.copy_(x)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["absorbed", "wide", "decompressed"])
@pytest.mark.parametrize("axis", [1, 2], ids=["tokens", "heads"])
def test_queries_that_lie_gigabytes_apart(monkeypatch: pytest.MonkeyPatch, form: str, axis: int) -> None:
    from openmythos.triton_kernels.mla_attention import absorbed

    if form == "wide":
        monkeypatch.setattr(absorbed, "WIDEST", 16)
    form = "decompressed" if form == "decompressed" else "absorbed"
    args = attention_inputs(1, 3, 40, 3, (13, 6, 37, 17), torch.float16)
    far = [*(apart(part, axis, 2**30) for part in args[:2]), *args[2:]]
    tail = (0.2, True)
    for mine, other in zip(run(form, *far, *tail), run(form, *args, *tail), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["absorbed", "wide"])
def test_rows_of_the_cache_as_far_apart_as_is_served(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    from openmythos.triton_kernels.mla_attention import absorbed

    if form == "wide":
        monkeypatch.setattr(absorbed, "WIDEST", 16)
    args = attention_inputs(1, 1, 131, 3, (13, 6, 37, 17), torch.float16)
    far = [*args[:2], *(apart(part, 1, backend.MAX_STRIDE - 1) for part in args[2:4]), *args[4:]]
    tail, form = (0.2, True), "absorbed"
    assert backend._mla(MlaAttention(*far, *tail)) is None
    for mine, other in zip(run(form, *far, *tail), run(form, *args, *tail), strict=True):
        assert torch.equal(mine, other)


@ARCHS
def test_no_tile_has_more_rows_than_refusals_count_with(arch: str) -> None:
    from openmythos.triton_kernels import configs

    for kernel in configs.kernels(arch):
        for entry in configs.all_configs(kernel, arch) if kernel.startswith("mla_") else ():
            rows_of_tiles = [size for name, size in entry.items() if name in ("BLOCK_M", "BLOCK_N", "BLOCK_R")]
            assert all(size * (backend.MAX_STRIDE - 1) < 2**31 for size in rows_of_tiles), (kernel, entry)


@FORMS
def test_weights_that_are_not_halves_of_one_tensor(form: str) -> None:
    args = attention_inputs(2, 3, 33, 3, (13, 6, 37, 17))
    apart = [*args[:4], *(weight.clone() for weight in args[4:])]
    tail = (0.2, True)
    for mine, other in zip(run(form, *args, *tail), run(form, *apart, *tail), strict=True):
        assert torch.equal(mine, other)


def test_splits_depend_on_shapes_only() -> None:
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
    return backend._mla(MlaAttention(*args.values(), 0.2, True, None, table))


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
    assert "33000 heads" in refusal(q_nope=torch.zeros(1, 1, 1, 13).expand(1, 1, 33000, 13))
    assert "tokens" in refusal(q_nope=torch.zeros(1, 1, 3, 13).expand(2**15, 2**16, 3, 13))
    assert "rows of tokens and heads" in refusal(q_nope=torch.zeros(1, 1, 3, 13).expand(1, 2**29, 3, 13))
    assert "keys" in refusal(latent=torch.zeros(1, 1, 37).expand(1, 2**30 + 1, 37))


def meta(shape: tuple, stride: tuple) -> torch.Tensor:
    return torch.empty_strided(shape, stride, device="meta")


def test_rows_too_far_apart_are_refused() -> None:
    far = 2**24
    assert f"rows of latent {far} elements apart" in refusal(latent=meta((1, 32, 37), (1, far, 1)))
    assert f"rows of k_rope {far} elements apart" in refusal(k_rope=meta((1, 32, 6), (1, far, 1)))
    assert f"rows of w_uk {far} elements apart" in refusal(w_uk=meta((3, 13, 37), (1, far, 1)))
    assert f"rows of w_uv {far} elements apart" in refusal(w_uv=meta((3, 17, 37), (1, far, 1)))
    pools = {"latent": meta((2, 1024, 37), (1, 2**21, 1)), "k_rope": randn(2, 1024, 6)}
    assert "pages of latent of" in refusal(**pools, table=torch.zeros(1, 2))
    args = attention_inputs(1, 2, 32, 3, (13, 6, 37, 17))
    out, lse = reference.mla_decompressed(*args, 0.2, True)
    for place, name in ((0, "q_nope"), (1, "q_rope"), (3, "k_rope")):
        changed = [*args]
        changed[place] = meta(args[place].shape, (1, far, *args[place].stride()[2:]))
        assert f"rows of {name} " in backend._mla_backward(MlaAttentionBackward(out, *changed, out, lse, 0.2, True))
    strided = meta(out.shape, (1, far, 17, 1))
    assert "rows of grad " in backend._mla_backward(MlaAttentionBackward(strided, *args, out, lse, 0.2, True))


def test_strided_lengths_are_refused() -> None:
    lengths = torch.tensor([3, 0, 5, 0])[::2]
    args = attention_inputs(2, 1, 32, 3, (13, 6, 37, 17))
    assert "seq_lens" in backend._mla(MlaAttention(*args, 0.2, True, lengths))


@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
@pytest.mark.parametrize(("new", "total", "causal"), [(65, 65, True), (7, 65, False), (1, 65, True)])
def test_flash_attention_of_torch(dtype: torch.dtype, new: int, total: int, causal: bool) -> None:
    args = attention_inputs(2, new, total, 3, (96, 32, 131, 47), dtype)
    found = flash_attention(MlaAttention(*args, 0.11, causal))
    plain = reference.mla_decompressed(*args, 0.11, causal)
    truth = reference.mla_decompressed(*(part.double() for part in args), 0.11, causal)
    for name, mine, true, other in zip(("out", "lse"), found, truth, plain, strict=True):
        assert mine.shape == other.shape
        assert_close(name, mine, true, other, dtype)
