"""Config errors by field, the seven variants and their exact parameter counts."""

from __future__ import annotations

import json

import pytest
import torch

import openmythos
from openmythos.config import VARIANTS
from tests.models import config, fields

POSITIVE = ["vocab_size", "dim", "n_heads", "max_seq_len", "max_loop_iters", "n_experts", "expert_dim"]
NOT_NEGATIVE = ["prelude_layers", "coda_layers", "n_shared_experts", "lora_rank", "n_experts_per_tok"]
MLA_ONLY = ["kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"]

BAD = [
    *(("mla", name, value) for name in POSITIVE for value in (0, -1, 1.5, "8", None, True)),
    *(("mla", name, value) for name in NOT_NEGATIVE for value in (-1, 0.5, None)),
    *(("mla", name, value) for name in MLA_ONLY for value in (0, -3, 2.0)),
    ("mla", "qk_rope_head_dim", 7),
    ("mla", "n_experts_per_tok", 6),
    *(("mla", "act_threshold", value) for value in (0, -0.5, float("nan"))),
    *(("mla", "rope_theta", value) for value in (0, -1.0)),
    *(("mla", "dropout", value) for value in (-0.1, 1.0, 2)),
    *(("gqa", "n_kv_heads", value) for value in (0, 3, -2, 8)),
    ("gqa", "dim", 44),
    *(("mla", "attn_type", value) for value in ("MLA", "mha", "", None)),
]


@pytest.mark.parametrize(("attn_type", "name", "value"), BAD, ids=str)
def test_a_bad_field_is_named_when_the_config_is_made_and_when_it_was_changed(
    attn_type: str, name: str, value: object
) -> None:
    changed = {"attn_type": attn_type, name: value}
    with pytest.raises(ValueError, match=rf"\b{name}={value!r}|\b{name}={value}"):
        openmythos.MythosConfig(**{**fields(), **changed})
    later = config(attn_type)
    setattr(later, name, value)
    with pytest.raises(ValueError, match=rf"\b{name}="):
        openmythos.OpenMythos(later)


@pytest.mark.parametrize("name", [*MLA_ONLY])
def test_grouped_query_attention_ignores_the_latent_fields(name: str) -> None:
    model = openmythos.OpenMythos(config("gqa", **{name: 7}))
    with torch.no_grad():
        assert model(torch.zeros(1, 3, dtype=torch.long), n_loops=1).isfinite().all()


def test_latent_attention_ignores_the_grouped_query_fields() -> None:
    model = openmythos.OpenMythos(config("mla", n_kv_heads=3, dim=44, n_heads=4))
    with torch.no_grad():
        assert model(torch.zeros(1, 3, dtype=torch.long), n_loops=1).isfinite().all()


@pytest.mark.parametrize("threshold", [1e-6, 1.0, 1.5, 1e9, float("inf")])
def test_any_positive_threshold_is_legal(threshold: float) -> None:
    openmythos.OpenMythos(config(act_threshold=threshold))


@pytest.mark.parametrize("changes", [{"n_shared_experts": 0}, {"n_experts_per_tok": 0}, {"lora_rank": 0}], ids=str)
def test_zero_is_legal_where_it_means_none(changes: dict) -> None:
    model = openmythos.OpenMythos(config(**changes))
    with torch.no_grad():
        assert model(torch.zeros(1, 3, dtype=torch.long), n_loops=2).isfinite().all()


def test_defaults_are_upstreams() -> None:
    upstream = pytest.importorskip("open_mythos.main", reason="the package open-mythos is not installed")
    assert openmythos.MythosConfig().to_dict() == vars(upstream.MythosConfig())
    assert len(openmythos.MythosConfig().to_dict()) == 23


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_upstreams(name: str) -> None:
    upstream = pytest.importorskip("open_mythos", reason="the package open-mythos is not installed")
    assert VARIANTS[name]().to_dict() == vars(getattr(upstream, name)())


COUNTS = {
    "mythos_1b": 1_064_028_034,
    "mythos_3b": 3_041_725_186,
    "mythos_10b": 9_981_316_994,
    "mythos_50b": 50_374_247_426,
    "mythos_100b": 99_545_072_130,
    "mythos_500b": 497_849_137_154,
    "mythos_1t": 999_326_352_386,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        model = openmythos.OpenMythos(VARIANTS[name]())
    assert all(part.is_meta for part in model.parameters())
    assert sum(part.numel() for part in model.parameters()) == COUNTS[name]


def test_from_any_and_json() -> None:
    cfg = config("gqa")
    assert openmythos.MythosConfig.from_any(json.loads(json.dumps(cfg.to_dict()))) == cfg
    assert openmythos.MythosConfig.from_any(cfg) == cfg
    with pytest.raises(ValueError, match="n_layers"):
        openmythos.MythosConfig.from_any({"n_layers": 3})
