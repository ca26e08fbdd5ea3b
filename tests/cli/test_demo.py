"""The demo: its results, the fairness of its rounds, and its errors."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import MutableMapping
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from rich.console import Console

from openmythos import KVCache, MythosConfig, OpenMythos
from openmythos.cli import main
from openmythos.demo import measure, models, report, run
from openmythos.demo.metrics import agreement
from openmythos.demo.progress import Progress
from openmythos.demo.text import LENGTH, tokens

TINY = {
    "vocab_size": 257,
    "dim": 48,
    "n_heads": 3,
    "n_experts": 5,
    "n_experts_per_tok": 2,
    "expert_dim": 23,
    "kv_lora_rank": 20,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 6,
    "qk_nope_head_dim": 10,
    "v_head_dim": 12,
}


class TestText:
    def test_bytes_are_tokens(self) -> None:
        assert bytes(tokens(24)[0].tolist()) == b"A recurrent-depth transf"
        assert LENGTH >= measure.PROMPT + run.DECODE_ROUNDS + 1

    @pytest.mark.parametrize("count", [0, LENGTH + 1])
    def test_wrong_count_is_named(self, count: int) -> None:
        with pytest.raises(ValueError, match=f"count={count}"):
            tokens(count)


class TestMetrics:
    def test_closed_form(self) -> None:
        baseline = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 4.0]])
        logits = torch.tensor([[3.0, 0.0, 0.0], [0.2, 0.1, 0.0], [5.0, 0.0, 4.0]])
        result = agreement(logits, baseline)
        assert result.error == pytest.approx(math.sqrt((0.04 + 25) / (9 + 0.01 + 16)), rel=1e-6)
        assert result.argmax == pytest.approx(1 / 3)
        assert result.argmax_clear == pytest.approx(1 / 2)
        expected = torch.nn.functional.kl_div(
            logits.double().log_softmax(-1), baseline.double().log_softmax(-1), log_target=True, reduction="batchmean"
        )
        assert result.kl == pytest.approx(expected.item(), rel=1e-9)

    def test_equal_logits(self) -> None:
        logits = torch.randn(7, 97)
        assert agreement(logits, logits)[:2] == (0.0, 1.0)
        assert agreement(logits, logits).kl == 0.0

    def test_no_clear_position(self) -> None:
        assert agreement(torch.zeros(2, 5), torch.zeros(2, 5) + torch.arange(5) * 0.01).argmax_clear is None


class _Clock:
    """Models that record when they are called, and whose logits differ."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def model(self, name: str, index: int) -> models.ComparedModel:
        def forward(ids: torch.Tensor, n_loops: int, kv_cache: MutableMapping, start_pos: int) -> torch.Tensor:
            self.calls.append(f"{name}@{start_pos}")
            kv_cache.setdefault("layer", {"k": torch.zeros(1, 0, 3)})
            past = kv_cache["layer"]["k"]
            kv_cache["layer"] = {"k": torch.cat((past, torch.zeros(1, ids.shape[1], 3)), dim=1)}
            return torch.full((1, ids.shape[1], 4), float(index + start_pos))

        return models.ComparedModel(name, forward, dict)


class TestRounds:
    def test_models_take_turns_over_the_same_tokens(self) -> None:
        clock = _Clock()
        pair = [clock.model("a", 0), clock.model("b", 1000)]
        ids = tokens(measure.PROMPT + 4)
        with Progress() as progress:
            prefill, caches = measure.prefill(pair, ids, measure.Limits(1, 2, math.inf), progress)
            decode = measure.decode(pair, ids, caches, measure.Limits(1, 3, math.inf), progress)
        assert clock.calls[:6] == ["a@0", "b@0", "b@0", "a@0", "a@0", "b@0"]
        assert clock.calls[6:] == ["a@128", "b@128", "b@129", "a@129", "a@130", "b@130", "b@131", "a@131"]
        assert [len(prefill.seconds["a"]), len(decode.seconds["b"])] == [2, 3]
        assert prefill.logits["b"].shape == (measure.PROMPT, 4)
        assert decode.logits["b"][:, 0].tolist() == [1128.0, 1129.0, 1130.0, 1131.0]
        assert decode.kv_bytes_per_token["a"] == 3 * 4

    @pytest.mark.parametrize(("min_rounds", "max_rounds", "made"), [(1, 5, 1), (3, 5, 3), (3, 2, 2)])
    def test_time_ends_the_rounds_after_the_minimum(self, min_rounds: int, max_rounds: int, made: int) -> None:
        clock = _Clock()
        limits = measure.Limits(min_rounds, max_rounds, 0.0)
        with Progress() as progress:
            prefill, _ = measure.prefill([clock.model("a", 0)], tokens(measure.PROMPT), limits, progress)
        assert len(prefill.seconds["a"]) == made

    def test_ratio_is_the_median_of_the_rounds_own_ratios(self) -> None:
        phase = measure.Phase("p", seconds={models.BASELINE: [1.0, 10.0, 3.0], "fast": [0.5, 1.0, 3.0]})
        phase.logits = {models.BASELINE: torch.eye(3), "fast": torch.eye(3)}
        fast = report.rows_of(phase)[1]
        assert (fast.seconds, fast.speedup) == (1.0, 2.0)


class TestCacheBytes:
    def test_ours_counts_the_latent_and_one_rope_key(self) -> None:
        config = MythosConfig(**TINY, prelude_layers=1, coda_layers=1, lora_rank=2, max_seq_len=32)
        model, cache = OpenMythos(config).bfloat16(), KVCache()
        with torch.no_grad():
            model(torch.arange(7)[None], n_loops=3, kv_cache=cache)
        assert models.cache_bytes(cache) == 7 * (20 + 6) * 2 * (1 + 3 + 1)

    def test_upstream_counts_its_tensors(self) -> None:
        cache = {"a": {"c_kv": torch.zeros(1, 5, 20), "k_rope": torch.zeros(1, 5, 3, 6).bfloat16()}}
        assert models.cache_bytes(cache) == 5 * 20 * 4 + 5 * 18 * 2


class TestReport:
    PHASE = "prefill 1x128 tokens"
    SERVED: ClassVar = {"linear": {"cpp": 3, "torch": 1}}
    ROWS = (
        report.Row(PHASE, models.BASELINE, 10.0, 1.0, None, None, None, None, None, {}, [10.0]),
        report.Row(PHASE, "upstream bf16 autocast", 5.0, 2.0, 1e-3, 1.0, 1.0, 3e-6, 61440.0, {}, [5.0]),
        report.Row(PHASE, "openmythos bfloat16", 0.5, 20.0, 1.5e-3, 0.97, 1.0, 2e-6, 11520.0, SERVED, [0.5]),
    )

    def test_backends_by_op(self) -> None:
        served = Counter({("linear", "cpp"): 3, ("linear", "torch"): 1, ("rope", "cpp"): 2})
        text = report.backends_text(report._by_op(served))
        assert text == "cpp: linear (3 of 4 calls), rope; torch: linear (1 of 4 calls)"

    @pytest.mark.parametrize("width", [80, 129, 400])
    def test_every_number_is_in_the_table(self, width: int) -> None:
        out = Console(width=width, record=True, file=io.StringIO())
        out.print(report.table(self.ROWS, out))
        text = out.export_text()
        assert "…" not in text
        assert "cpp: linear (3 of 4 calls)" in text
        numbers = "10.00 s, 1.00x, 500.0 ms, 20.00x, 1.5e-03, 100.0%, 97.0%, 2.0e-06, 61,440, 11,520"
        assert [number for number in numbers.split(", ") if number not in text] == []

    def test_files(self, tmp_path: Path) -> None:
        report.save_json(tmp_path / "demo.json", {"seed": 0}, self.ROWS)
        report.save_png(tmp_path / "demo.png", "title", self.ROWS)
        saved = json.loads((tmp_path / "demo.json").read_text())
        assert saved["seed"] == 0
        assert [row["speedup"] for row in saved["rows"]] == [1.0, 2.0, 20.0]
        assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.json", "demo.png"]

    def test_a_failure_keeps_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "demo.json"
        path.write_text("old")

        def fail(temporary: Path) -> None:
            temporary.write_text("half")
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            report._write(path, fail)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]


class TestFailures:
    def test_missing_packages_say_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
        assert main(["demo", "--size", "small"]) == 1
        error = capsys.readouterr().err
        for words in ("pip install --no-deps open-mythos", "pip install transformers", "pip install matplotlib"):
            assert words in error

    def test_too_little_memory(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        monkeypatch.setattr(run, "check_packages", lambda: None)
        monkeypatch.setattr(run, "available_memory", lambda: 2 * 10**9)
        assert main(["demo", "--out", str(tmp_path)]) == 1
        assert "2.0 GB are free; --size small" in capsys.readouterr().err

    def test_folder_that_is_a_file(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        monkeypatch.setattr(run, "check_packages", lambda: None)
        (tmp_path / "file").write_text("")
        assert main(["demo", "--size", "small", "--out", str(tmp_path / "file" / "demo")]) == 1
        assert "--out" in capsys.readouterr().err


def test_end_to_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("open_mythos", reason="upstream's package open_mythos is not installed")
    monkeypatch.setattr(models, "SMALL", TINY)
    assert main(["demo", "--size", "small", "--rounds", "1", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"Wrote {tmp_path / 'out' / 'demo.json'} and {tmp_path / 'out' / 'demo.png'}" in printed
    saved = json.loads((tmp_path / "out" / "demo.json").read_text())
    rows = {(row["phase"].split()[0], row["model"]): row for row in saved["rows"]}
    assert len(rows) == 8
    for phase in ("prefill", "decode"):
        assert rows[phase, models.BASELINE]["speedup"] == 1.0
        assert rows[phase, "openmythos float32"]["error"] < 1e-4
        assert rows[phase, "openmythos float32"]["argmax"] == 1.0
        autocast, ours = rows[phase, "upstream bf16 autocast"], rows[phase, "openmythos bfloat16"]
        assert 0 < ours["error"] <= 1.25 * autocast["error"]
        assert "loop_step_" in ours["backends"]
        assert ours["backends"].keys() == rows[phase, "openmythos float32"]["backends"].keys()
    slots = 2 + 16 + 2
    assert rows["decode", models.BASELINE]["kv_bytes_per_token"] == (20 + 3 * 6) * 4 * slots
    assert rows["decode", "openmythos float32"]["kv_bytes_per_token"] == (20 + 6) * 4 * slots
    assert rows["decode", "openmythos bfloat16"]["kv_bytes_per_token"] == (20 + 6) * 2 * slots
