"""mla_attention's argument checks: a call launches what its tensors say, or raises a sentence and launches nothing."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cases.mla_attention import attention_inputs
from tests.native import calls
from tests.native.structs import MlaArgs
from tools.recording_driver import FakeOps

TENSORS = ("q_nope", "q_rope", "latent", "k_rope", "w_uk", "w_uv")
NAMES = (*TENSORS, "scale", "causal", "seq_lens", "block_table", "out", "lse")
TYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
LATENTS = [(256, 32), (384, 32), (512, 64), (1024, 64)]
MULTIPROCESSORS = 4
STRIDES = {
    **{name: ("b", "t", "h") for name in ("q_nope", "q_rope", "out")},
    **{name: ("b", "s") for name in ("latent", "k_rope")},
    **{"w_uk": ("h", "n"), "w_uv": ("h", "v")},
}


def _valid(
    batch: int, new: int, keys: int, heads: int, latent: tuple[int, int], dtype: torch.dtype, page: int = 0
) -> dict[str, Any]:
    dims = (13, latent[1], latent[0], 17)
    values = dict(zip(TENSORS, attention_inputs(batch, new, keys, heads, dims, dtype), strict=True))
    values |= {"scale": 0.25, "causal": True, "seq_lens": None, "block_table": None, "op": "mla_absorbed"}
    values["out"] = torch.empty(batch, new, heads, 17, dtype=dtype)
    values["lse"] = torch.empty(batch, heads, new)
    if page:
        pool = torch.zeros(7, page, sum(latent), dtype=dtype)
        values |= {"latent": pool[..., : latent[0]], "k_rope": pool[..., latent[0] :]}
        values["block_table"] = torch.zeros(batch, -(-keys // page), dtype=torch.int32)
        values["seq_lens"] = torch.full((batch,), keys)
    return values


def _damaged(x: torch.Tensor, kind: str) -> torch.Tensor | None:
    if kind in ("float64", "int32", "bfloat16"):
        return x.to(getattr(torch, kind))
    if kind == "longer":
        return torch.cat([x, x])
    if kind == "wider":
        return torch.cat([x, x], -1)
    if kind == "dimension":
        return x[None]
    if kind == "strided":
        return torch.stack([x, x], -1).flatten(-2)[..., ::2]
    if kind == "misaligned":
        flat = torch.cat([x.flatten()[:1], x.flatten()])
        return flat[1:].view(x.shape)
    return None


KINDS = ("float64", "int32", "bfloat16", "longer", "wider", "dimension", "strided", "misaligned", "none")


def _call(fake: FakeOps, values: dict[str, Any]) -> tuple[list[tuple], str]:
    """(kernel, grid, threads, shared, params) of every launch, and the error."""
    launches = []

    def run(kernel, grid, threads, shared, stream, params):
        copy = MlaArgs.from_buffer_copy(ctypes.string_at(params, ctypes.sizeof(MlaArgs)))
        launches.append((kernel, grid, threads, shared, copy))

    fake.driver.reset(devices=1, multiprocessors=MULTIPROCESSORS)
    with fake.driver.running(run):
        try:
            getattr(fake.ops, values["op"])(*(values[name] for name in NAMES))
        except RuntimeError as error:
            return launches, str(error).splitlines()[0]
    return launches, ""


def _check_launches(values: dict[str, Any], launches: list[tuple]) -> None:
    (batch, new, heads, dn), dtype = values["q_nope"].shape, values["q_nope"].dtype
    dc, dr, dv = values["latent"].shape[2], values["k_rope"].shape[2], values["w_uv"].shape[1]
    table, size = values["block_table"], values["q_nope"].element_size()
    total = values["latent"].shape[1] * (1 if table is None else table.shape[1])
    params = launches[0][4]
    assert all(bytes(launch[4]) == bytes(params) for launch in launches)
    assert (params.b, params.t, params.h, params.dn, params.dr) == (batch, new, heads, dn, dr)
    assert (params.dc, params.dv, params.total, params.causal) == (dc, dv, total, values["causal"])
    assert params.page == (0 if table is None else values["latent"].shape[1])
    assert list(TYPES)[params.type] == dtype
    assert params.scale == pytest.approx(values["scale"] * 1.44269504, rel=1e-6)
    for name in (*TENSORS, "out", "lse", "seq_lens", "block_table"):
        x = values[name]
        assert (getattr(params, name) or 0) == (0 if x is None else x.data_ptr()), name
        for position, axis in enumerate(STRIDES.get(name, ())):
            assert getattr(params, f"{name}_{axis}") == x.stride(position), name
        if name in TENSORS[2:] and x.numel():
            assert x.data_ptr() % 16 == 0, f"{name} is read by vectors"
    for name, wide in (("seq_lens", params.wide_lens), ("block_table", params.wide_table)):
        if values[name] is not None:
            assert wide == (values[name].dtype == torch.int64)
    rows = new * heads
    tile = (8 if dc > 384 else 16) if dtype == torch.float32 else (32 if dc <= 512 and rows > 16 else 16)
    tiles = batch * -(-rows // tile)
    assert 1 <= params.splits <= max(1, -(-total // 64))
    assert params.splits == 1 or params.splits * tiles <= MULTIPROCESSORS * 2
    assert params.part - params.folded >= batch * rows * dc * size
    assert params.part_lse - params.part >= batch * params.splits * rows * dc * 4
    assert params.folded % 16 == params.part % 16 == 0
    prefix = f"openmythos_mla_absorbed_{TYPES[dtype]}"
    tokens = -(-batch * new // 4)
    assert params.columns % 16 == 0
    assert params.columns >= 16
    assert [launch[:4] for launch in launches] == [
        (f"{prefix}_fold", (tokens, heads, dc // 64), 256, 0),
        (f"{prefix}_{dc}_{dr}{'_rows32' if tile == 32 else ''}", (tiles, params.splits, 1), 256, 0),
        (f"{prefix}_combine", (tokens, heads, -(-dv // params.columns)), 256, 0),
    ]


SETTINGS = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SETTINGS
@given(st.data())
def test_launches_what_was_given_or_says_why_not(fake_ops: FakeOps, data: st.DataObject) -> None:
    values = _valid(
        data.draw(st.integers(0, 3)),
        data.draw(st.sampled_from([0, 1, 4, 16, 17])),
        data.draw(st.sampled_from([0, 1, 67, 400])),
        data.draw(st.sampled_from([1, 5, 16])),
        data.draw(st.sampled_from(LATENTS)),
        data.draw(st.sampled_from(list(TYPES))),
        data.draw(st.sampled_from([0, 0, 16, 5])),
    )
    for _ in range(data.draw(st.integers(0, 2))):
        name = data.draw(st.sampled_from([name for name in NAMES if isinstance(values[name], torch.Tensor)] or ["q"]))
        if name in values:
            values[name] = _damaged(values[name], data.draw(st.sampled_from(KINDS)))
        if any(values[name] is None for name in (*TENSORS, "out")):
            return
    launches, error = _call(fake_ops, values)
    if error:
        assert not launches
        assert error.startswith("openmythos_native::mla_absorbed: ")
        assert error.endswith(".")
        assert "expected" in error or "must be" in error
    elif values["q_nope"].numel() == 0:
        assert not launches
    else:
        _check_launches(values, launches)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"op": "mla_decompressed"}, "q_nope has dtype float32, expected bfloat16 or float16"),
        (
            {"q_rope": torch.zeros(2, 1, 5, 16), "k_rope": torch.zeros(2, 67, 16)},
            "latent and k_rope have 256 and 16 columns, expected 256 and 32 or 384 and 32 or 512 and 64 or",
        ),
        ({"w_uv": torch.zeros(5, 257, 256), "out": torch.zeros(2, 1, 5, 257)}, "w_uv has 257 rows a head, expected"),
        ({"latent": torch.zeros(2, 67, 257)[..., 1:]}, "rows of latent must be 16-byte aligned"),
        ({"k_rope": torch.zeros(2, 66, 32)}, "k_rope has shape (2, 66, 32), expected (2, 67, 32)"),
        ({"seq_lens": torch.zeros(2)}, "seq_lens has dtype float32, expected int32 or int64"),
        ({"seq_lens": torch.zeros(3, dtype=torch.int32)}, "seq_lens has shape (3), expected (2)"),
        ({"block_table": torch.zeros(2, 1, dtype=torch.int32)}, "seq_lens is None, expected a tensor because"),
        ({"w_uk": torch.zeros(5, 13, 256).half()}, "w_uk has dtype float16, expected float32 as q_nope"),
        ({"lse": torch.zeros(2, 1, 5)}, "lse has shape (2, 1, 5), expected (2, 5, 1)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_sentences(fake_ops: FakeOps, change: dict[str, Any], said: str) -> None:
    launches, error = _call(fake_ops, _valid(2, 1, 67, 5, (256, 32), torch.float32) | change)
    assert said in error
    assert not launches


def test_splits_depend_on_shapes_alone(fake_ops: FakeOps) -> None:
    values = _valid(1, 1, 4096, 16, (256, 32), torch.bfloat16)
    splits = []
    for length in (4096, 1):
        values["seq_lens"] = torch.tensor([length])
        launches, _ = _call(fake_ops, values)
        splits.append(launches[1][1][1])
    assert splits == [2 * MULTIPROCESSORS] * 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        (
            {"op": "mla_decompressed"},
            "q_nope has dtype float32, expected bfloat16 or float16",
        ),
        ({"new": 17}, "q_nope has 17 tokens, expected at most 16"),
        ({"dims": (8, 6, 40, 8)}, "latent and k_rope have 40 and 6 columns, expected 256 and 32 or 384 and 32"),
        ({"dims": (8, 32, 256, 260)}, "w_uv has 260 rows a head, expected at most 256"),
        ({"latent": torch.zeros(2, 20, 257)[..., 1:]}, "rows of latent must be 16-byte aligned"),
        ({"k_rope": torch.zeros(2, 20, 32).half()}, "k_rope has dtype float16, expected float32 as q_nope"),
        ({"seq_lens": torch.zeros(2)}, "seq_lens has dtype float32, expected int32 or int64"),
    ],
    ids=lambda value: next(iter(value), "served") if isinstance(value, dict) else "",
)
def test_what_is_served(fake_ops: FakeOps, change: dict[str, Any], said: str | None) -> None:
    dims = change.get("dims", (8, 32, 256, 8))
    values = dict(zip(TENSORS, attention_inputs(2, change.get("new", 1), 20, 3, dims), strict=True)) | change
    op = change.get("op", "mla_absorbed")
    reason = calls.reason(op, *(values[name] for name in TENSORS), 0.1, True, change.get("seq_lens"), None)
    assert reason is None if said is None else said in reason
