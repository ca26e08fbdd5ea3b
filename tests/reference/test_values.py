"""The reference against independent formulas, and its behaviour in edge cases."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from openmythos import dispatch, reference
from tests.cases import doubled, randn
from tests.cases.loop_step import step_args
from tests.cases.mla_attention import attention_inputs
from tests.cases.moe import experts
from tests.tolerances import assert_within

EXACT = 1e-12
FORMS = {"absorbed": reference.mla_absorbed, "decompressed": reference.mla_decompressed}


def test_rms_norm_is_torchs() -> None:
    x, weight = randn(5, 97).double(), randn(97).double()
    assert_within("norm", reference.rms_norm(x, weight, 1e-6), F.rms_norm(x, (97,), weight, 1e-6), EXACT)
    normed, total = reference.rms_norm_add(x, 2 * x, weight, 1e-6)
    assert torch.equal(total, 3 * x)
    assert_within("norm of the sum", normed, F.rms_norm(3 * x, (97,), weight, 1e-6), EXACT)


def test_rope_is_a_complex_product() -> None:
    x, angles = randn(2, 7, 3, 10).double(), randn(7, 5).double()
    want = (
        torch.view_as_complex(x.unflatten(-1, (5, 2)).contiguous())
        * torch.polar(torch.ones_like(angles), angles)[:, None]
    )
    table = torch.stack((angles.cos(), angles.sin()), -1)
    assert_within("rotated", reference.rope(x, table), torch.view_as_real(want).flatten(-2), EXACT)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("new", [1, 4, 9])
def test_both_forms_equal_plain_attention(causal: bool, new: int) -> None:
    args = doubled(attention_inputs(2, new, 9, 3, (13, 6, 37, 17)))
    q_nope, q_rope, latent, k_rope, w_uk, w_uv = args
    keys = torch.cat((torch.einsum("bsc,hnc->bhsn", latent, w_uk), k_rope[:, None].expand(-1, 3, -1, -1)), -1)
    values = torch.einsum("bsc,hvc->bhsv", latent, w_uv)
    queries = torch.cat((q_nope, q_rope), -1).transpose(1, 2)
    mask = torch.ones(new, 9, dtype=torch.bool).tril(9 - new) if causal else None
    want = F.scaled_dot_product_attention(queries, keys, values, mask, scale=0.2).transpose(1, 2)
    for form in FORMS:
        assert_within(form, FORMS[form](*args, 0.2, causal)[0], want, EXACT)


def test_paged_equals_contiguous() -> None:
    args = doubled(attention_inputs(2, 3, 48, 3, (13, 6, 37, 17)))
    table = torch.tensor([[5, 0, 3], [1, 6, -1]])
    pools = [torch.full((7, 16, width), float("nan"), dtype=torch.float64) for width in (37, 6)]
    pools = [torch.where(pool.isnan(), 0.0, pool) for pool in pools]
    lengths = torch.tensor([41, 32])
    for b in range(2):
        for slot in range(3 - b):
            for part in range(2):
                pools[part][table[b, slot]] = args[2 + part][b, 16 * slot : 16 * slot + 16]
    for form in FORMS:
        want = FORMS[form](*args, 0.2, True, lengths)
        found = FORMS[form](*args[:2], *pools, *args[4:], 0.2, True, lengths, table)
        for a, b in zip(found, want, strict=True):
            assert_within(form, a, b, EXACT)


def test_ragged_equals_each_sequence_alone() -> None:
    args = doubled(attention_inputs(4, 2, 19, 3, (13, 6, 37, 17)))
    lengths = [19, 7, 2, 0]
    for b, length in enumerate(lengths):
        args[2][b, length:], args[3][b, length:] = float("nan"), float("nan")
    out, lse = reference.mla_decompressed(*args, 0.2, True, torch.tensor(lengths))
    for b, length in enumerate(lengths[:3]):
        alone = [part[b : b + 1] for part in args[:2]] + [part[b : b + 1, :length] for part in args[2:4]]
        want, want_lse = reference.mla_decompressed(*alone, *args[4:], 0.2, True)
        assert_within("out", out[b : b + 1], want, EXACT)
        assert_within("lse", lse[b : b + 1], want_lse, EXACT)
    assert out[3].eq(0).all()
    assert lse[3].eq(float("-inf")).all()


def test_routing_ties_and_not_a_number() -> None:
    ids, weights, counts = reference.moe_route(torch.zeros(2, 9), None, 3)
    assert ids.tolist() == [[0, 1, 2]] * 2
    assert counts.tolist() == [2, 2, 2, 0, 0, 0, 0, 0, 0]
    ids, weights, _ = reference.moe_route(torch.tensor([[float("nan"), 0.0, 1.0, float("-inf")]]), None, 2)
    assert ids.tolist() == [[2, 1]]
    assert_within("weights", weights, torch.softmax(torch.tensor([[1.0, 0.0]]), -1), 1e-6)


def test_experts_one_row_at_a_time() -> None:
    x, ids, weights, gate_up, down = doubled(experts(9, 13, 11, 5, 3))
    want = torch.zeros_like(x)
    for n in range(9):
        for j in range(3):
            e = int(ids[n, j])
            hidden = F.silu(gate_up[e, 0] @ x[n]) * (gate_up[e, 1] @ x[n])
            want[n] += weights[n, j] * (down[e] @ hidden)
    assert_within("out", reference.moe_experts(x, ids, weights, gate_up, down), want, EXACT)


@pytest.mark.parametrize("t", [0, 3, 11])
def test_an_int_equals_a_tensor_of_it(t: int) -> None:
    args = doubled(step_args(7, 97, 3, t))
    one = reference.loop_step(*args)
    args[13:15] = 0, torch.full((7,), t, dtype=torch.int32)
    for a, b in zip(reference.loop_step(*args), one, strict=True):
        assert_within("output", a, b, 1e-6 if a is not one[3] else EXACT)


def test_rows_at_different_depths_equal_one_call_a_row() -> None:
    depth = torch.tensor([0, 1, 5, 9], dtype=torch.int32)
    args = doubled(step_args(4, 97, 3, depth))
    together = reference.loop_step(*args)
    for n in range(4):
        alone = [part[n : n + 1] for part in args[:5]] + args[5:13] + [int(depth[n]), None] + args[15:]
        for a, b in zip(together, reference.loop_step(*alone), strict=True):
            assert_within("output", a[n : n + 1], b, 1e-6)


def test_threshold_above_one_keeps_adding() -> None:
    args = doubled(step_args(5, 97, 3, 1))
    args[15] = 1.5
    args[4] = torch.tensor([0.0, 0.5, 0.99, 1.2, 1.49], dtype=torch.float64)
    new, new_out, new_p, _ = reference.loop_step(*args)
    p = new_p - args[4]
    crosses = new_p >= 1.5
    weight = torch.where(crosses, (1 - args[4]).clamp(min=0), p)
    assert_within("h_out", new_out, args[3] + weight[:, None] * new, EXACT)
    assert (p > 0).all()


def test_in_place_equals_functional() -> None:
    args = doubled(step_args(5, 97, 3, 2))
    want = reference.loop_step(*args)
    state = [part.clone() for part in args[:5]]
    following = torch.full_like(state[0], float("nan"))
    call = dispatch.contract("loop_step_")(*state, *args[5:], following)
    dispatch.entries("loop_step_", "cpu")[-1].run(call)
    for a, b in zip((state[0], state[3], state[4], following), want, strict=True):
        assert torch.equal(a, b)


def test_loop_embedding_of_the_formula() -> None:
    for loop_dim in (1, 6, 7):
        half = (loop_dim + 1) // 2
        for t in (0, 1, 13):
            angles = torch.tensor([t * 10000.0 ** (-2 * i / loop_dim) for i in range(half)])
            want = torch.cat((angles.sin(), angles.cos()))[:loop_dim]
            torch.testing.assert_close(reference.loop_embedding(t, loop_dim), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_statistics_are_wide(dtype: torch.dtype) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    args = [part.to(dtype) for part in attention_inputs(1, 2, 5, 2, (3, 2, 4, 3))]
    assert reference.mla_decompressed(*args, 0.2, True)[1].dtype == wide
    assert reference.moe_route(randn(3, 5).to(dtype), None, 2)[1].dtype == wide


def test_the_reference_imports_torch_only() -> None:
    paths = list((Path(reference.__file__).parent / "ops").glob("*/reference.py"))
    assert len(paths) == 7
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                allowed = name.split(".")[0] in ("torch", "__future__", "collections", "typing")
                own = name == "openmythos.ops.precision" or name.endswith(".reference")
                assert allowed or own, f"{path} imports {name}"
