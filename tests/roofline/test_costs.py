"""Bytes and FLOPs against values computed by hand, and parameter counts against the models."""

from __future__ import annotations

import pytest
import torch

import openmythos
from openmythos.config import VARIANTS, mythos_1b
from openmythos.ops.cost import Cost, total
from openmythos.ops.linear import cost as linear_cost
from openmythos.ops.linear import sample as linear
from openmythos.ops.loop_step import cost as loop_step_cost
from openmythos.ops.loop_step import sample as loop_step
from openmythos.ops.mla_attention import cost as mla_cost
from openmythos.ops.mla_attention import sample as mla
from openmythos.ops.moe import cost as moe_cost
from openmythos.ops.moe import sample as moe
from openmythos.ops.rms_norm import cost as rms_norm_cost
from openmythos.ops.rms_norm import sample as rms_norm
from openmythos.ops.rope import cost as rope_cost
from openmythos.ops.rope import sample as rope
from openmythos.roofline import model

ONE_B = mythos_1b()
BF16, F32 = torch.bfloat16, torch.float32
HEADS = model.heads_of(ONE_B)


def test_linear() -> None:
    found = linear_cost.linear(linear.linear(3, 5, 7, BF16, "meta"))
    assert found == Cost(weights=70, activations=72, flops=210)


def test_swiglu_reads_three_matrices_and_keeps_its_hidden_channels_on_the_chip() -> None:
    assert linear_cost.swiglu(linear.swiglu(2, 8, 16, F32, "meta")) == Cost(
        weights=3 * 8 * 16 * 4, activations=2 * 2 * 8 * 4, flops=6 * 2 * 8 * 16
    )


def test_rope_reads_and_writes_every_head_and_an_angle_a_pair() -> None:
    """4 multiplications and 2 additions a pair; a cosine and a sine in float32."""
    found = rope_cost.rope(rope.rope(10, 16, 32, BF16, "meta"))
    assert found == Cost(weights=10 * 16 * 2 * 4, activations=2 * 10 * 16 * 32 * 2, flops=15360)


def test_rms_norm_reads_and_writes_a_row_two_of_each_with_a_residual() -> None:
    assert rms_norm_cost.rms_norm(rms_norm.rms_norm(10, 64, F32, "meta")) == Cost(64 * 4, 0, 10 * 64 * 4 * 2, 4 * 640)
    found = rms_norm_cost.rms_norm_add(rms_norm.rms_norm_add(10, 64, BF16, "meta"))
    assert found == Cost(64 * 2, 0, 10 * 64 * 2 * 4, 5 * 640)


def test_loop_step_is_four_reads_and_three_writes() -> None:
    """Five rows in their own dtype, h_out in float32 read and written; the parameters with D columns."""
    forward = loop_step_cost.loop_step(loop_step.loop_step(10, 2048, 8, 16, BF16, "meta"))
    assert forward.activations == 10 * 2048 * (5 * 2 + 2 * 4)
    backward = loop_step_cost.loop_step_backward(loop_step.loop_step_backward(10, 2048, 8, 16, F32, "meta"))
    assert backward.activations == 10 * 2048 * 9 * 4


@pytest.mark.parametrize(
    ("new", "total", "pairs"),
    [
        pytest.param(1, 7, 7, id="decode"),
        pytest.param(4, 4, 10, id="prefill: 1 + 2 + 3 + 4"),
        pytest.param(2, 5, 9, id="chunk: 4 + 5"),
    ],
)
def test_seen_keys(new: int, total: int, pairs: int) -> None:
    assert mla_cost.seen_keys(new, total) == pairs
    mask = torch.ones(new, total).tril(total - new)
    assert mask.sum() == pairs
    assert mla_cost.seen_keys(new, total, causal=False) == new * total


def test_attention_of_1b_by_hand() -> None:
    """One query over 4096 keys: 2 x 16 x (256 x 128 + 4096 x 544) FLOPs over 4096 x 288 cached values."""
    found = mla_cost.mla_absorbed(mla.mla_attention(1, 1, 4096, HEADS, BF16, "meta"))
    assert found.flops == 2 * 16 * (256 * 128 + 4096 * 544) == 72_351_744
    assert found.cache == 4096 * 288 * 2 == 2_359_296
    assert found.weights == 16 * 256 * 128 * 2 == 1_048_576


def test_decompressed_prefill_counts_the_causal_half() -> None:
    found = mla_cost.mla_decompressed(mla.mla_attention(1, 128, 128, HEADS, BF16, "meta"))
    assert found.flops == 2 * 16 * (128 * 256 * 128 + 128 * 129 // 2 * 160) == 176_488_448


def test_the_chosen_form_is_the_one_with_fewer_flops() -> None:
    for new, keys in ((1, 512), (64, 4096), (90, 4096), (512, 512)):
        call = mla.mla_attention(1, new, keys, HEADS, BF16, "meta")
        both = [count(call).flops for count in (mla_cost.mla_absorbed, mla_cost.mla_decompressed)]
        wins = model.absorbed_wins(new, keys, HEADS.latent, HEADS.nope, HEADS.value)
        assert wins == (both[0] < both[1]) or abs(both[0] / both[1] - 1) < 0.01


@pytest.mark.parametrize(
    ("rows", "distinct"),
    [pytest.param(1, 4.0, id="1"), pytest.param(64, 62.97, id="64"), pytest.param(512, 64.0, id="512")],
)
def test_distinct_experts(rows: int, distinct: float) -> None:
    assert moe_cost.distinct_experts(rows, 64, 4) == pytest.approx(distinct, abs=0.01)


def test_experts_of_1b_read_302_mb_a_loop() -> None:
    """12 expert-widths of 3 x 2048 x 2048 in bfloat16, and the router."""
    found = moe_cost.moe(moe.moe_experts(1, model.experts_of(ONE_B), BF16, "meta"))
    assert found.weights == 12 * 3 * 2048 * 2048 * 2 + 2048 * 64 * 2
    assert found.weights == pytest.approx(302e6, rel=0.002)
    assert found.flops == 2 * (12 * 3 * 2048 * 2048 + 2048 * 64)


def test_decoded_token_of_1b_reads_5_3_gb() -> None:
    found = total(model.decode(ONE_B, 1, 512, 16, BF16).values())
    assert found.weights == pytest.approx(5.3e9, rel=0.01)
    assert found.flops == pytest.approx(5.3e9 + 20 * 2 * 16 * 513 * 544, rel=0.01)
    assert found.cache == 20 * 513 * 288 * 2


def test_prefill_of_1b_reads_29_5_gb_and_multiplies_0_68_tflop() -> None:
    found = total(model.forward(ONE_B, 1, 128, 0, 16, BF16, last_token_only=False).values())
    assert found.weights == pytest.approx(29.5e9, rel=0.01)
    assert found.flops == pytest.approx(0.68e12, rel=0.01)


def test_last_token_only_saves_the_other_logits() -> None:
    both = [model.forward(ONE_B, 1, 128, 0, 16, BF16, last_token_only=last)["head"].flops for last in (True, False)]
    assert both[1] == 128 * both[0] == 128 * 2 * 2048 * 32000


def test_training_does_every_product_three_times_and_writes_gradients_once() -> None:
    once = model.forward(ONE_B, 1, 64, 0, 4, F32, last_token_only=False)["loop: experts"]
    found = model.train_step(ONE_B, 1, 64, 4, F32)["loop: experts"]
    assert found.flops == 3 * once.flops
    assert found.weights == pytest.approx(2 * once.weights + once.weights / 4)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_those_of_the_model(name: str) -> None:
    cfg = VARIANTS[name]()
    with torch.device("meta"):
        built = openmythos.OpenMythos(cfg)
    assert model.parameters(cfg) == sum(part.numel() for part in built.parameters())
    experts = built.recurrent.block.ffn
    assert model.routed_parameters(cfg) == experts.gate_up.numel() + experts.down.numel()
    assert model.attention_parameters(cfg) == sum(part.numel() for part in built.recurrent.block.attn.parameters())


def test_cache_bytes_are_those_of_a_cache() -> None:
    cfg = openmythos.MythosConfig(
        vocab_size=50, dim=32, n_heads=2, max_loop_iters=3, prelude_layers=1, coda_layers=2, kv_lora_rank=12,
        q_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8, n_experts=4, n_experts_per_tok=2,
        expert_dim=16, lora_rank=2,
    )  # fmt: skip
    cache = openmythos.KVCache()
    with torch.no_grad():
        openmythos.OpenMythos(cfg)(torch.zeros(1, 5, dtype=torch.long), n_loops=3, kv_cache=cache)
    held = sum(cache.rows(key).numel() * 4 for key in cache)
    assert held == 5 * model.cache_bytes(cfg, 3, F32)


def test_grouped_query_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="attn_type='gqa'"):
        model.heads_of(openmythos.MythosConfig(attn_type="gqa"))
