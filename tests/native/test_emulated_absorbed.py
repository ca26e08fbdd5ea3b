"""mla_absorbed as gfx1151 code on the emulator, against the float64 reference; see emulated.py."""

from __future__ import annotations

import mmap

import pytest
import torch

from openmythos import reference
from tests.cases import each_dtype, strided
from tests.cases.mla_attention import attention_inputs, paged
from tests.native import calls
from tests.native.emulated import Emulated
from tests.tolerances import assert_close
from tools import gfx1151_emulator as emulator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulator.missing() is not None, reason=f"{emulator.missing()}"),
]

# The latents of the models, with odd head sizes: (dn, dr, dc, dv)
WIDTHS = {256: (29, 32, 256, 47), 384: (96, 32, 384, 31), 512: (40, 64, 512, 17), 1024: (24, 64, 1024, 33)}
each_width = pytest.mark.parametrize("dims", WIDTHS.values(), ids=map(str, WIDTHS))


def scale_of(args: list) -> float:
    return (args[0].shape[3] + args[1].shape[3]) ** -0.5


def check(emulated: Emulated, args: list, causal: bool, lengths=None) -> list[torch.Tensor]:
    """Check out and lse against the tolerances."""
    call = (*args, scale_of(args), causal, lengths, None)
    return emulated.check(calls.mla_absorbed, reference.mla_absorbed, call, [args[0].dtype] * 2)


@each_dtype
@each_width
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("new", [1, 4])
def test_every_instance(emulated: Emulated, dtype: torch.dtype, dims: tuple, new: int, causal: bool) -> None:
    """67 keys are two tiles and three keys; 5 and 20 rows (token, head) do not fill a block of rows."""
    args = attention_inputs(1, new, 67, 5, dims, dtype)
    check(emulated, args, causal)
    name = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    prefix = f"openmythos_mla_absorbed_{name}"
    rows = "_rows32" if new * 5 > 16 and dims[2] <= 512 and dtype != torch.float32 else ""
    assert emulated.kernels == [f"{prefix}_fold", f"{prefix}_{dims[2]}_{dims[1]}{rows}", f"{prefix}_combine"]


# The heads and head sizes of the models with the first, the second and the last latent: (H, (dn, dr, dc, dv))
MODELS = {
    "1b": (16, (64, 32, 256, 64)),
    "3b": (24, (96, 32, 384, 96)),
    "50b": (48, (128, 64, 512, 128)),
    "500b": (96, (128, 64, 1024, 128)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("new", [1, 4])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_dimensions_of_the_models(emulated: Emulated, dtype: torch.dtype, new: int, model: tuple) -> None:
    """Two sequences, the second one shorter; with 24 heads and one token the second tile of rows is half full."""
    args = attention_inputs(2, new, 45, *model, dtype)
    check(emulated, args, True, torch.tensor([45, 20]))


@each_dtype
@each_width
def test_ragged_lengths_with_nan_past_them(emulated: Emulated, dtype: torch.dtype, dims: tuple) -> None:
    """Several splits per sequence, some of them empty for the shorter sequences; the last sequence has no keys."""
    args = attention_inputs(4, 3, 131, 3, dims, dtype)
    lengths = torch.tensor([131, 33, 2, 0], dtype=torch.int32)
    for b, length in enumerate(lengths):
        args[2][b, length:] = float("nan")
        args[3][b, length:] = float("nan")
    emulated.fake.driver.reset(devices=1, multiprocessors=24)
    out, lse = check(emulated, args, True, lengths)
    assert out[3].eq(0).all()
    assert lse[3].eq(float("-inf")).all()
    assert out[2, 0].eq(0).all(), "a query before the first key sees nothing"


@each_dtype
@each_width
@pytest.mark.parametrize(("page", "index"), [(16, torch.int64), (48, torch.int32), (5, torch.int32)], ids=str)
def test_paged_cache(emulated: Emulated, dtype: torch.dtype, dims: tuple, page: int, index: torch.dtype) -> None:
    """Shuffled pages whose unused slots are NaN; page ids past the length are invalid."""
    args = attention_inputs(3, 2, 80, 5, dims, dtype)
    lengths = torch.tensor([71, 16, 1])
    pools, table = paged(args, lengths.tolist(), page, 2**30)
    tail = (scale_of(args), True)
    call = (*pools, *tail, lengths.to(index), table.to(index))
    found = emulated.call(calls.mla_absorbed, call)
    plain = reference.mla_absorbed(*args, *tail, lengths, None)
    truth = reference.mla_absorbed(*(part.double() for part in args), *tail, lengths, None)
    for name, mine, true, other in zip(("out", "lse"), found, truth, plain, strict=True):
        assert_close(name, mine, true, other, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pages_further_apart_than_32_bits_tell(emulated: Emulated, dtype: torch.dtype) -> None:
    args = attention_inputs(1, 1, 32, 2, WIDTHS[256], dtype)
    apart, cache = 2**31 + 512, torch.cat(args[2:4], -1)
    memory = mmap.mmap(-1, (apart + 16 * 288) * cache.element_size())
    pool = torch.frombuffer(memory, dtype=dtype).as_strided((2, 16, 288), (apart, 288, 1))
    pool.copy_(cache.view(2, 16, 288).flip(0))
    call = (*args[:2], pool[..., :256], pool[..., 256:], *args[4:], 0.1, True)
    lengths, table = torch.tensor([32]), torch.tensor([[1, 0]])
    far = emulated.call(calls.mla_absorbed, (*call, lengths, table))
    near = emulated.call(calls.mla_absorbed, (*args, 0.1, True, lengths, None))
    assert all(torch.equal(a, b) for a, b in zip(far, near, strict=True))


def test_many_splits(emulated: Emulated) -> None:
    """More splits than a wave has lanes, and the combination of a single token, whose threads share them."""
    args = attention_inputs(1, 1, 2500, 2, WIDTHS[256], torch.bfloat16)
    emulated.fake.driver.reset(devices=1, multiprocessors=64)
    check(emulated, args, False)


@each_dtype
def test_strided_queries_and_shuffled_axes(emulated: Emulated, dtype: torch.dtype) -> None:
    args = attention_inputs(2, 3, 40, 5, WIDTHS[384], dtype)
    args[:2] = [strided(part.transpose(0, 1).contiguous().transpose(0, 1)) for part in args[:2]]
    args[2:4] = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in args[2:4]]
    check(emulated, args, True)


@each_dtype
def test_no_keys(emulated: Emulated, dtype: torch.dtype) -> None:
    args = attention_inputs(2, 1, 0, 3, WIDTHS[256], dtype)
    call = (*args, 1.0, True, None, None)
    out, lse = emulated.call(calls.mla_absorbed, call)
    assert out.eq(0).all()
    assert lse.eq(float("-inf")).all()


@each_dtype
def test_large_scores_do_not_overflow(emulated: Emulated, dtype: torch.dtype) -> None:
    args = attention_inputs(1, 2, 65, 2, WIDTHS[256], dtype)
    args[0] = args[0] * 30
    check(emulated, args, False)


def test_not_a_number_in_a_visible_key_shows(emulated: Emulated) -> None:
    args = attention_inputs(2, 1, 33, 2, WIDTHS[256], torch.bfloat16)
    args[2][1, 7, 3] = float("nan")
    out = emulated.call(calls.mla_absorbed, (*args, 0.2, True, None, None))[0]
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


@each_dtype
def test_two_runs_are_equal(emulated: Emulated, dtype: torch.dtype) -> None:
    args = attention_inputs(2, 2, 130, 3, WIDTHS[512], dtype)
    call = (*args, 0.1, True, torch.tensor([130, 77]), None)
    first, second = (emulated.call(calls.mla_absorbed, call) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
