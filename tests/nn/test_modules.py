"""Masks, rotary tables, 16-bit and mixed dtypes, module by module and over the whole model."""

from __future__ import annotations

import copy

import pytest
import torch

import openmythos
from openmythos import ops
from openmythos.nn.mask import CausalMask
from tests.backends import Entry, isa_variants
from tests.models import config, small_model, tokens
from tests.tolerances import AUTOCAST_FACTOR, MODEL_LIMITS, ORACLE_FLOAT64, assert_close, assert_within, errors
from tests.upstream.oracle import pair, upstream

ATTENTION = pytest.mark.parametrize("attn_type", ["mla", "gqa"])
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


def masks(new: int, total: int) -> dict[str, torch.Tensor]:
    window = torch.ones(new, total).tril(total - new).triu(total - new - 2).log()
    return {
        "causal": torch.full((1, 1, new, total), float("-inf")).triu(total - new + 1),
        "window": window[None, None],
        "padding": torch.stack(
            (torch.zeros(new, total), torch.zeros(new, total).index_fill(1, torch.tensor([0]), -1e9))
        )[:, None],
        "bias for each head": torch.randn(1, 4, new, total),
        "everything": torch.randn(2, 4, new, total),
    }


@ATTENTION
@pytest.mark.parametrize("name", list(masks(1, 1)))
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_any_additive_mask(attn_type: str, name: str, grad: bool) -> None:
    theirs, ours = (model.double() for model in pair(attn_type))
    mask = masks(9, 9)[name]
    freqs = theirs.freqs_cis_mla[:9] if attn_type == "mla" else theirs.freqs_cis[:9]
    x = torch.randn(2, 9, 48, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        want = theirs.recurrent(x, x, freqs, mask, 3)
        assert_within("output", ours.recurrent(x, x, freqs, mask, 3), want, ORACLE_FLOAT64)


@ATTENTION
def test_no_mask_sees_every_key(attn_type: str) -> None:
    theirs, ours = (model.double() for model in pair(attn_type))
    freqs = theirs.freqs_cis_mla[:9] if attn_type == "mla" else theirs.freqs_cis[:9]
    x = torch.randn(2, 9, 48, dtype=torch.float64)
    with torch.no_grad():
        assert_within("output", ours.prelude[0](x, freqs), theirs.prelude[0](x, freqs), ORACLE_FLOAT64)


@ATTENTION
@pytest.mark.parametrize("past", [0, 5])
def test_the_models_own_mask_equals_its_tensor(attn_type: str, past: int) -> None:
    model = small_model(attn_type)
    layer = model.prelude[0]
    freqs = model.freqs_cis_mla if attn_type == "mla" else model.freqs_cis
    x = torch.randn(2, past + 4, 48)
    outputs = []
    for mask in (CausalMask(4, x.device, x.dtype), CausalMask(4, x.device, x.dtype).tensor(past + 4)):
        cache = {}
        with torch.no_grad():
            if past:
                layer(x[:, :past], freqs, CausalMask(past, x.device, x.dtype), cache, "layer")
            outputs.append(layer(x[:, past:], freqs[past:], mask, cache, "layer"))
    assert_within("output", outputs[0], outputs[1], 1e-6)
    assert torch.equal(
        CausalMask(2, x.device, x.dtype, past=1).tensor()[0, 0], torch.tensor([[0.0, 0.0, float("-inf")], [0.0] * 3])
    )


@ATTENTION
def test_tables_longer_than_the_input(attn_type: str) -> None:
    """The first rows of a longer table are used, where upstream needs exactly one row per token."""
    theirs, ours = (model.double() for model in pair(attn_type))
    freqs = ours.freqs_cis_mla if attn_type == "mla" else ours.freqs_cis
    x = torch.randn(2, 9, 48, dtype=torch.float64)
    with torch.no_grad():
        want = theirs.recurrent.block(x, freqs[:9])
        assert_within("output", ours.recurrent.block(x, freqs), want, ORACLE_FLOAT64)
    with pytest.raises(RuntimeError, match=r"8 rows.*9 positions"):
        ours.recurrent.block(x, freqs[:8])


@HALVES
@ATTENTION
@pytest.mark.parametrize("cached", [False, True], ids=["no_cache", "cache"])
def test_16_bit_models(attn_type: str, dtype: torch.dtype, cached: bool) -> None:
    """Within the tolerances relative to the reference backend; upstream does not run in 16 bits at all."""
    model = small_model(attn_type, dim=96, vocab_size=257, max_seq_len=64).to(dtype)
    exact = copy.deepcopy(model).double()
    ids = tokens(2, 33, 257)

    def call(which: openmythos.OpenMythos) -> torch.Tensor:
        cache = {} if cached else None
        return which(ids, n_loops=5, kv_cache=cache)

    with torch.no_grad():
        truth, found = call(exact), call(model)
        with openmythos.use_backend("reference"):
            plain = call(model)
    assert found.dtype == dtype
    assert_close("logits", found, truth, plain, dtype, limits=MODEL_LIMITS)


@ATTENTION
def test_bfloat16_is_as_near_to_float32_as_upstream_under_autocast(attn_type: str) -> None:
    ours_error = theirs_error = 0.0
    for seed in range(4):
        theirs, ours = pair(attn_type, seed, dim=128, vocab_size=257, max_seq_len=64)
        ids = tokens(2, 64, 257, seed)
        with torch.no_grad():
            exact = theirs(ids, n_loops=6)
            with torch.autocast("cpu", torch.bfloat16):
                plain = theirs(ids, n_loops=6)
            ours_error += errors(ours.to(torch.bfloat16)(ids, n_loops=6), exact).frobenius
        theirs_error += errors(plain, exact).frobenius
    assert ours_error <= AUTOCAST_FACTOR * theirs_error, f"ours {ours_error / 4:.2e}, upstream {theirs_error / 4:.2e}"


@HALVES
def test_gradients_of_16_bit_models(dtype: torch.dtype) -> None:
    model = small_model().to(dtype)
    exact = copy.deepcopy(model).double()
    for which in (model, exact):
        which(tokens(2, 9), n_loops=3).float().square().mean().backward()
    for (name, mine), true in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert mine.grad.dtype == dtype, name
        assert errors(mine.grad, true.grad).frobenius < 0.2, name


MODULES = ["prelude.0", "prelude.0.attn", "prelude.0.ffn", "recurrent.block.ffn", "recurrent.norm", "recurrent.act"]


@ATTENTION
@HALVES
@pytest.mark.parametrize("path", MODULES)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_mixed_dtypes_at_module_level(attn_type: str, dtype: torch.dtype, path: str, grad: bool) -> None:
    model = small_model(attn_type)
    freqs = model.freqs_cis_mla if attn_type == "mla" else model.freqs_cis
    x = torch.randn(2, 7, 48)
    wide = copy.deepcopy(model).double()
    args = (freqs,) if path.endswith(("prelude.0", "attn")) else ()
    with torch.set_grad_enabled(grad):
        truth = wide.get_submodule(path)(x.to(dtype).double(), *args)
        narrow_in = model.get_submodule(path)(x.to(dtype), *args)
        narrow_weights = model.to(dtype).get_submodule(path)(x.to(dtype).float(), *args)
    for name, found in (("16-bit input", narrow_in), ("16-bit weights", narrow_weights)):
        assert found.isfinite().all(), name
        assert errors(found, truth).frobenius < (0.03 if dtype == torch.bfloat16 else 0.005), name


@ATTENTION
def test_mixed_weights_in_one_model(attn_type: str) -> None:
    """Experts in bfloat16, the rest in float32, as memory-bound users do."""
    model = small_model(attn_type)
    model.recurrent.block.ffn.to(torch.bfloat16)
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        found = model(tokens(2, 7), n_loops=3)
        assert found.dtype == torch.float32
        assert errors(found, exact(tokens(2, 7), n_loops=3)).frobenius < MODEL_LIMITS[torch.bfloat16].cap


def test_float64_after_a_round_trip_keeps_the_rotary_table() -> None:
    """A cast drops the imaginary part of upstream's complex tables; ours are recomputed."""
    model = small_model()
    want = model.freqs_cis_mla.clone()
    for dtype in (torch.bfloat16, torch.float64, torch.float16, torch.float32):
        assert torch.equal(model.to(dtype).freqs_cis_mla, want), dtype


def test_spectral_radius_stays_below_one_in_floating_point() -> None:
    injection = openmythos.LTIInjection(9)
    with torch.no_grad():
        for value in (-1e4, -30.0, -17.4, 0.0, 30.0, 1e4):
            injection.log_A.fill_(value)
            A = injection.get_A()
            assert ((A > 0) & (A < 1)).all(), value
            assert (injection.to(torch.bfloat16).get_A() < 1).all()
            injection.float()


@pytest.mark.parametrize("t", [0, 1, 7, 40])
@pytest.mark.parametrize("loop_dim", [1, 6, 7, 48])
def test_loop_index_embedding(t: int, loop_dim: int) -> None:
    h = torch.randn(2, 5, 48)
    want = upstream.loop_index_embedding(h.double(), t, loop_dim)
    assert_within("embedded", openmythos.loop_index_embedding(h.double(), t, loop_dim), want, 1e-6)
    assert openmythos.loop_index_embedding(h.bfloat16(), t, loop_dim).dtype == torch.bfloat16


@pytest.mark.parametrize("t", [0, 3, 4, 99])
def test_lora_adapter_past_its_table(t: int) -> None:
    torch.manual_seed(0)
    theirs = upstream.LoRAAdapter(48, 3, 4)
    ours = openmythos.LoRAAdapter(48, 3, 4)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 48)
    assert_within("delta", ours(x, t), theirs(x, t), 1e-6)


@pytest.mark.parametrize("shape", [(7, 48), (2, 3, 48), (48,)], ids=str)
def test_expert_and_norm_take_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    expert, norm, x = openmythos.Expert(48, 31), openmythos.RMSNorm(48), torch.randn(shape)
    with torch.no_grad():
        assert_within("expert", expert(x), expert.double()(x.double()), 1e-6)
        assert_within("norm", norm(x), x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt(), 1e-6)


@pytest.mark.parametrize("n_loops", [0, -1, 1.5, True, "3"])
def test_bad_n_loops(n_loops: object) -> None:
    model, cache = small_model(), {}
    with pytest.raises(ValueError, match="n_loops="):
        model(tokens(1, 3), n_loops=n_loops, kv_cache=cache)
    with pytest.raises(ValueError, match="n_loops="):
        model.generate(tokens(1, 3), 2, n_loops=n_loops)
    assert cache == {}


def test_bad_ids() -> None:
    model = small_model()
    for ids, name in (
        (torch.zeros(1, 0, dtype=torch.long), "input_ids"),
        (torch.zeros(3, dtype=torch.long), "input_ids"),
        (torch.zeros(1, 3), "input_ids.*float32"),
        (torch.tensor([[1, -2]]), "-2.*vocab_size-1=100"),
        (torch.tensor([[1, 101]]), "101.*vocab_size-1=100"),
        (torch.zeros(1, 41, dtype=torch.long), "max_seq_len=40"),
    ):
        cache: dict = {}
        with pytest.raises(ValueError, match=name):
            model(ids, kv_cache=cache)
        assert cache == {}
    for start in (-1, 40, 38):
        with pytest.raises(ValueError, match=f"start_pos={start}"):
            model(tokens(1, 3), start_pos=start)


def test_int32_ids() -> None:
    model = small_model()
    with torch.no_grad():
        assert torch.equal(model(tokens(2, 5).int()), model(tokens(2, 5)))


def test_last_token_only() -> None:
    model = small_model()
    with torch.no_grad():
        whole, last = model(tokens(2, 9)), model(tokens(2, 9), last_token_only=True)
    assert last.shape == (2, 1, 101)
    assert_within("logits", last, whole[:, -1:], 1e-6)


def test_gqa_without_ops_backend_equals_reference() -> None:
    model = small_model("gqa")
    with torch.no_grad():
        found = model(tokens(2, 9))
        with openmythos.use_backend("reference"):
            assert_within("logits", found, model(tokens(2, 9)), 1e-5)


def test_moe_module_equals_the_op() -> None:
    moe = openmythos.MoEFFN(config()).eval()
    x = torch.randn(2, 5, 48)
    with torch.no_grad():
        moe.router_bias.normal_()
        shared = [(part.gate.weight, part.up.weight, part.down.weight) for part in moe.shared_experts]
        want = ops.moe(
            x.view(10, 48),
            moe.router.weight,
            moe.router_bias,
            2,
            ops.StackedExperts(moe.gate_up, moe.down, tuple(shared)),
        )
        assert_within("output", moe(x).view(10, 48), want, 1e-6)


@pytest.mark.parametrize("isa", isa_variants())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@ATTENTION
def test_every_instruction_set_runs_the_model(attn_type: str, dtype: torch.dtype, isa: str) -> None:
    model = small_model(attn_type).to(dtype)
    exact = copy.deepcopy(model).double()
    logits, ids = [], tokens(2, 9)
    with torch.no_grad(), Entry("linear", "cpp", "cpu", isa).active():
        for start, end in ((0, 7), (7, 8), (8, 9)):
            call = {"n_loops": 3, "start_pos": start}
            cache = logits[-1][1] if logits else {}
            logits.append((model(ids[:, start:end], kv_cache=cache, **call), cache))
    with torch.no_grad(), openmythos.use_backend("reference"):
        plain = model(ids, n_loops=3)
        truth = exact(ids, n_loops=3)
    found = torch.cat([part for part, _ in logits], dim=1)
    assert_close("logits", found, truth, plain, dtype, limits=MODEL_LIMITS)
