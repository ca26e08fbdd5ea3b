"""openmythos plan: floors, what fits, layouts, and invalid requests."""

from __future__ import annotations

import json

import pytest
import torch

from openmythos.cli import main
from openmythos.config import VARIANTS
from openmythos.roofline import MACHINES, Cost, Machine, model
from openmythos.roofline.fractions import measured_fraction
from openmythos.roofline.layout import USABLE, layout, layouts, training_devices

TOY = Machine("toy", 100.0, {"bfloat16": 1000.0}, 1e9, "given")


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_floor_is_the_slower_of_bytes_and_flops() -> None:
    assert TOY.floor(Cost(weights=200, flops=1000), "bfloat16") == 2.0
    assert TOY.floor(Cost(weights=200, flops=5000), "bfloat16") == 5.0
    assert [TOY.bound(Cost(weights=200, flops=count), "bfloat16") for count in (1000, 5000)] == ["bytes", "FLOPs"]


def test_a_dtype_without_a_rate_is_an_error() -> None:
    with pytest.raises(ValueError, match="'float32': toy has rates for bfloat16"):
        TOY.rate("float32")


def test_1b_on_h200(capsys: pytest.CaptureFixture[str]) -> None:
    """5.3 GB a token at 4.3 TB/s: 1.23 ms; the latent cache keeps 20 x 288 values a token."""
    found = plan(capsys, "1b", "--device", "h200", "--context", "128")
    assert found["parameters"] == 1_064_028_034
    assert found["cache_token"] == 20 * 288 * 2
    assert found["fits"]
    decode, prefill = found["phases"]
    assert decode["bound"] == "bytes"
    assert decode["floor"] == pytest.approx(5.31e9 / 4.3e12, rel=0.01)
    assert prefill["tokens"] == 128
    assert decode["expected_tokens_per_s"] is None


def test_given_ceilings_replace_those_of_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--bandwidth", "100", "--flops", "50", "--memory", "32")
    found = plan(capsys, "1b", "--device", "my box", *given)
    machine = found["request"]["machine"]
    assert (machine["bandwidth"], machine["flops"], machine["memory"]) == (100e9, {"bfloat16": 50e12}, 32e9)
    assert found["phases"][0]["floor"] == pytest.approx(found["phases"][0]["cost"]["weights"] / 100e9, rel=0.02)


def test_measured_fraction_gives_the_expected_speed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openmythos.plan.measured_fraction", lambda device, phase, dtype: 0.5)
    decode = plan(capsys, "1b", "--device", "h200")["phases"][0]
    assert decode["expected_tokens_per_s"] == pytest.approx(decode["tokens_per_s"] / 2)


def test_an_unknown_device_has_no_fraction() -> None:
    assert measured_fraction("unknown", "decode", "bfloat16") is None


@pytest.mark.parametrize(
    ("variant", "devices"),
    [("mythos_1b", 1), ("mythos_50b", 1), ("mythos_100b", 2), ("mythos_500b", 8), ("mythos_1t", 32)],
)
def test_fewest_h200s(variant: str, devices: int) -> None:
    """1t: 2 TB of weights over 127 GB each is 16 at least; its 512 experts and 126 GB of others need powers of two."""
    found = layouts(VARIANTS[variant](), torch.bfloat16, MACHINES["h200"].memory)
    assert found[0].devices == devices
    for one in found:
        assert one.devices == one.tensor * one.experts
        assert one.weights <= USABLE * MACHINES["h200"].memory
        assert one.weights + one.cache == pytest.approx(USABLE * MACHINES["h200"].memory)


def test_a_layout_cuts_every_byte_once() -> None:
    cfg = VARIANTS["mythos_100b"]()
    one = layout(cfg, torch.bfloat16, MACHINES["h200"].memory, 2)
    routed = 2 * model.routed_parameters(cfg)
    dense = 2 * model.parameters(cfg) - routed
    assert one.weights * one.tensor == pytest.approx(dense + routed / one.experts)


def test_a_width_that_does_not_divide_the_heads_is_no_layout() -> None:
    cfg = VARIANTS["mythos_3b"]()
    cfg.n_heads = 6
    assert layout(cfg, torch.bfloat16, 141e9, 4) is None


def test_training_needs_16_bytes_a_parameter() -> None:
    assert training_devices(VARIANTS["mythos_1t"](), 141e9) == 126


@pytest.mark.parametrize("variant", ["1b", "1t"])
def test_tables_are_printed(variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", variant, "--device", "gfx1151"]) == 0
    text = capsys.readouterr().out
    for words in ("212 GB/s", "not measured", "at best", "AdamW"):
        assert words in text
    assert ("does not fit" in text) == (variant == "1t")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param(["--device", "tpu"], "--device tpu: known are h200, gfx1151, here", id="unknown device"),
        pytest.param(["--bandwidth", "0"], "--bandwidth 0.0: must be positive", id="no bandwidth"),
        pytest.param(["--context", "5000"], "--context 5000: mythos_1b has at most 4096", id="context"),
        pytest.param(["--batch", "0"], "--batch 0: must be at least 1", id="batch"),
        pytest.param(["--loops", "0"], "--loops 0: must be at least 1", id="loops"),
        pytest.param(["--dtype", "float32"], "'float32': NVIDIA H200 has rates for", id="no rate"),
    ],
)
def test_bad_requests_are_named(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    device = [] if "--device" in arguments else ["--device", "h200"]
    assert main(["plan", "1b", *device, *arguments]) == 2
    assert named in capsys.readouterr().err


def test_this_machine_is_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openmythos.roofline.machine.STREAM_BYTES", 2**20)
    monkeypatch.setattr("openmythos.roofline.machine.LINEAR_ROWS", 8)
    monkeypatch.setattr("openmythos.roofline.machine.LINEAR_WIDTH", 64)
    machine = plan(capsys, "1b")["request"]["machine"]
    assert machine["bandwidth"] > 1e6
    assert machine["flops"]["bfloat16"] >= machine["flops"]["float32"] > 1e5
    assert "measured now" in machine["source"]
