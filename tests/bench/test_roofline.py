"""bench.roofline: floors of every op and of the whole model, as tables."""

from __future__ import annotations

import sys

import pytest

from bench.roofline import duration, main, rows
from openmythos.config import VARIANTS
from openmythos.roofline import MACHINES


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_every_row(name: str) -> None:
    found = {row.name.split(",")[0]: row for row in rows(VARIANTS[name](), MACHINES["h200"], "bfloat16")}
    assert len(found) == 9  # the ops with two sizes share a name
    assert all(row.floor > 0 for row in found.values())
    assert found["decoded token"].bound == "bytes"
    assert found["training step"].bound == "FLOPs"


def test_1b_on_h200_by_hand() -> None:
    """302 MB and 5.36 GB at 4.3 TB/s; 2.48 TFLOP at 790 TFLOP/s."""
    found = {row.name: row for row in rows(VARIANTS["mythos_1b"](), MACHINES["h200"], "bfloat16")}
    assert found["moe, 1 row"].floor == pytest.approx(302.26e6 / 4.3e12, rel=1e-3)
    assert found["moe, 8192 rows"].floor == pytest.approx(8192 * 302.25e6 / 790e12, rel=1e-3)
    assert found["decoded token, 16 loops, 4096 cached"].floor == pytest.approx(5.36e9 / 4.3e12, rel=2e-3)
    assert found["loop_step, 8192 rows"].floor == pytest.approx(8192 * 2048 * 18 / 4.3e12, rel=1e-3)


def test_tables_of_a_given_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--device", "box", "--bandwidth", "256", "--flops", "50", "--memory", "64"]
    monkeypatch.setattr(sys, "argv", ["roofline", *given])
    main()
    text = capsys.readouterr().out
    assert "### mythos_1t, bfloat16, box: 256 GB/s, 50 TFLOP/s" in text
    assert "| moe, 1 row | 302 MB | 302 MFLOP | 1.18 ms | bytes |" in text


def test_an_unknown_machine_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["roofline", "--device", "tpu"])
    with pytest.raises(SystemExit):
        main()
    assert "--device tpu: known are" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "text"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (7.94e-7, "0.794 us")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
