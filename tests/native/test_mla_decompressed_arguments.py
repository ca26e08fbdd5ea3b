"""mla_attention's decompressed form: what is launched for which tensors, and the sentences about those it refuses."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cases.mla_attention import attention_inputs
from tests.native import calls
from tests.native.structs import MlaDecompressedArgs
from tools.recording_driver import FakeOps

TENSORS = ("q_nope", "q_rope", "latent", "k_rope", "w_uk", "w_uv")
NAMES = (*TENSORS, "scale", "causal", "seq_lens", "block_table", "out", "lse")
TYPES = {torch.bfloat16: "bf16", torch.float16: "f16"}
# (dn, dr, dv), and two stages of their tiles on AMD: tiles of 32 keys by 32 elements, and of dv by 32 keys
HEADS = {(64, 32, 64): 20480, (96, 32, 96): 28672, (128, 64, 128): 40960}


def _valid(
    batch: int, new: int, keys: int, heads: int, head: tuple[int, int, int], dtype: torch.dtype, page: int = 0
) -> dict[str, Any]:
    (dn, dr, dv), dc = head, 24
    values = dict(zip(TENSORS, attention_inputs(batch, new, keys, heads, (dn, dr, dc, dv), dtype), strict=True))
    values |= {"scale": 0.25, "causal": True, "seq_lens": None, "block_table": None, "op": "mla_decompressed"}
    values["out"] = torch.empty(batch, new, heads, dv, dtype=dtype)
    values["lse"] = torch.empty(batch, heads, new)
    if page:
        pool = torch.zeros(7, page, dc + dr, dtype=dtype)
        values |= {"latent": pool[..., :dc], "k_rope": pool[..., dc:]}
        values["block_table"] = torch.zeros(batch, -(-keys // page), dtype=torch.int32)
        values["seq_lens"] = torch.full((batch,), keys)
    return values


def _call(fake: FakeOps, values: dict[str, Any]) -> tuple[list[tuple], str]:
    """(kernel, grid, threads, shared, params) of every launch, and the error."""
    launches = []

    def run(kernel, grid, threads, shared, stream, params):
        copy = MlaDecompressedArgs.from_buffer_copy(ctypes.string_at(params, ctypes.sizeof(MlaDecompressedArgs)))
        launches.append((kernel, grid, threads, shared, copy))

    fake.driver.reset(devices=1)
    with fake.driver.running(run):
        try:
            getattr(fake.ops, values["op"])(*(values[name] for name in NAMES))
        except RuntimeError as error:
            return launches, str(error).splitlines()[0]
    return launches, ""


SETTINGS = settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SETTINGS
@given(st.data())
def test_launches_what_was_given(fake_ops: FakeOps, data: st.DataObject) -> None:
    batch, new = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 17, 128, 129]))
    keys, heads = data.draw(st.sampled_from([0, 1, 64, 67, 128])), data.draw(st.sampled_from([1, 5]))
    head, dtype = data.draw(st.sampled_from(list(HEADS))), data.draw(st.sampled_from(list(TYPES)))
    page, ragged = data.draw(st.sampled_from([0, 0, 16, 5])), data.draw(st.booleans())
    values = _valid(batch, new, keys, heads, head, dtype, page)
    if ragged:
        values["seq_lens"] = torch.full((batch,), keys, dtype=data.draw(st.sampled_from([torch.int32, torch.int64])))
    launches, error = _call(fake_ops, values)
    assert not error
    table, total = values["block_table"], values["latent"].shape[1]
    total *= 1 if table is None else table.shape[1]
    padded = -(-total // 64) * 64
    gathers = values["seq_lens"] is not None or total % 64 != 0
    expected = [(f"openmythos_mla_decompressed_{TYPES[dtype]}_{'_'.join(map(str, head))}",)]
    expected[0] += ((batch * heads * -(-new // 128), 1, 1), 256, HEADS[head])
    if gathers and total:
        expected.insert(0, ("openmythos_mla_decompressed_gather", (-(-batch * padded // 8), 1, 1), 256, 0))
    assert [launch[:4] for launch in launches] == expected
    params = launches[-1][4]
    assert (params.b, params.t, params.h, params.dn, params.dr, params.dv) == (batch, new, heads, *head)
    assert (params.total, params.padded, params.causal) == (total, padded, True)
    assert params.scale == pytest.approx(values["scale"] * 1.44269504, rel=1e-6)
    assert params.lse_b == heads * new
    for name in ("q_nope", "q_rope", "out", "lse", "seq_lens"):
        x = values[name]
        assert (getattr(params, name) or 0) == (0 if x is None else x.data_ptr()), name
    for name in ("q_nope", "q_rope", "out"):
        assert [getattr(params, f"{name}_{axis}") for axis in "bth"] == list(values[name].stride()[:3]), name
    if not total:
        return
    assert params.keys % 16 == params.values % 16 == 0
    if gathers:
        assert (params.k_rope, params.k_rope_s) == (params.gathered + 24 * 2, 24 + head[1])
        assert params.k_rope_b == padded * params.k_rope_s
        first = launches[0][4]
        assert (first.latent, first.k_rope) == (values["latent"].data_ptr(), values["k_rope"].data_ptr())
        assert (first.latent_b, first.latent_s) == values["latent"].stride()[:2]
        assert first.page == (values["latent"].shape[1] if page else 0)
    else:
        assert params.k_rope == values["k_rope"].data_ptr()
        assert (params.k_rope_b, params.k_rope_s) == values["k_rope"].stride()[:2]


BF16 = torch.bfloat16


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"q_rope": torch.zeros(2, 17, 5, 64, dtype=BF16), "k_rope": torch.zeros(2, 67, 64, dtype=BF16)},
         "q_nope, q_rope and w_uv have heads of 64, 64 and 64 elements, expected 64, 32 and 64 or 96, 32 and 96 or"),
        ({"latent": torch.zeros(2, 67, 28, dtype=BF16)[..., :24], "w_uk": torch.zeros(5, 64, 24, dtype=BF16),
          "w_uv": torch.zeros(5, 64, 24, dtype=BF16)}, "rows of latent must be 16-byte aligned"),
        ({"latent": torch.zeros(2, 67, 32, dtype=BF16)[..., :20], "w_uk": torch.zeros(5, 64, 24, dtype=BF16)[..., :20],
          "w_uv": torch.zeros(5, 64, 24, dtype=BF16)[..., :20]}, "latent has 20 columns, expected a multiple of 8"),
        ({"q_nope": torch.zeros(2, 17, 5, 68, dtype=BF16)[..., :64]}, "rows of q_nope must be 16-byte aligned"),
        ({"q_rope": torch.zeros(2, 17, 5, 33, dtype=BF16)[..., 1:]}, "rows of q_rope must be 16-byte aligned"),
        ({"out": torch.zeros(2, 17, 5, 65, dtype=BF16)[..., 1:]}, "rows of out must be 16-byte aligned"),
        ({"block_table": torch.zeros(2, 1, dtype=torch.int32)}, "seq_lens is None, expected a tensor because"),
        ({"lse": torch.zeros(2, 17, 5)}, "lse has shape (2, 17, 5), expected (2, 5, 17)"),
        ({"op": "mla_absorbed"}, "q_nope has 17 tokens, expected at most 16"),
    ],
    ids=["heads", "latent", "dc", "q_nope", "q_rope", "out", "block_table", "lse", "absorbed"],
)  # fmt: skip
def test_sentences(fake_ops: FakeOps, change: dict[str, Any], said: str) -> None:
    launches, error = _call(fake_ops, _valid(2, 17, 67, 5, (64, 32, 64), BF16) | change)
    assert said in error
    assert error.startswith(f"openmythos_native::{change.get('op', 'mla_decompressed')}: ")
    assert not launches


def test_nothing_is_launched_for_nothing(fake_ops: FakeOps) -> None:
    for batch, new in ((0, 17), (2, 0)):
        assert _call(fake_ops, _valid(batch, new, 67, 5, (64, 32, 64), BF16)) == ([], "")


@pytest.mark.slow
def test_heads_take_turns_where_their_keys_and_values_are_more_than_a_gibibyte(fake_ops: FakeOps) -> None:
    values = _valid(1, 2, 64, 3, (128, 64, 128), BF16)
    keys = 1 << 20
    values["latent"] = torch.zeros(1, 1, 24, dtype=BF16).expand(1, keys, 24)
    values["k_rope"] = torch.zeros(1, 1, 64, dtype=BF16).expand(1, keys, 64)
    launches, error = _call(fake_ops, values)
    assert not error
    assert [launch[4].h for launch in launches] == [2, 1]
    first, second = (launch[4] for launch in launches)
    assert second.q_nope - first.q_nope == 2 * 2 * first.q_nope_h
    assert second.q_rope - first.q_rope == 2 * 2 * first.q_rope_h
    assert second.out - first.out == 2 * 2 * first.out_h
    assert second.lse - first.lse == 2 * 2 * 4
    assert first.lse_b == second.lse_b == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"new": 1}, None),
        (
            {"dims": (64, 32, 40, 96)},
            "heads of 64, 32 and 96 elements, expected 64, 32 and 64 or 96, 32 and 96",
        ),
        ({"dims": (64, 32, 20, 64)}, "latent has 20 columns, expected a multiple of 8"),
        ({"dtype": torch.float32}, "q_nope has dtype float32, expected bfloat16 or float16"),
        ({"q_nope": torch.zeros(2, 17, 3, 65, dtype=BF16)[..., 1:]}, "rows of q_nope must be 16-byte aligned"),
        ({"k_rope": torch.zeros(2, 20, 32).half()}, "k_rope has dtype float16, expected bfloat16 as q_nope"),
        ({"seq_lens": torch.zeros(2)}, "seq_lens has dtype float32, expected int32 or int64"),
    ],
    ids=["served", "one token", "heads", "dc", "dtype", "q_nope", "dtypes", "seq_lens"],
)
def test_what_is_served(fake_ops: FakeOps, change: dict[str, Any], said: str | None) -> None:
    dims, new = change.get("dims", (64, 32, 40, 64)), change.get("new", 17)
    values = dict(zip(TENSORS, attention_inputs(2, new, 20, 3, dims, change.get("dtype", BF16)), strict=True)) | change
    tensors = (values[name] for name in TENSORS)
    reason = calls.reason("mla_decompressed", *tensors, 0.1, True, change.get("seq_lens"), None)
    assert reason is None if said is None else said in reason
