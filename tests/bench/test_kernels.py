"""bench.roofline --kernels: resources of each GPU kernel, and its occupancy."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import kernels
from bench.roofline import main


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "threads", "waves"),
    [
        ("sm90", 115, 1216, 256, 16),  # 4 waves of 120 registers in each quarter
        ("sm90", 64, 2948, 256, 32),
        ("sm90", 160, 9408, 128, 12),
        ("sm90", 118, 26884, 512, 16),
        ("sm90", 32, 0, 256, 64),
        ("sm90", 124, 99840, 256, 16),  # two blocks of 97 KB in 228 KB
        ("sm80", 150, 99840, 256, 8),  # one in 164 KB
        ("sm120", 148, 99840, 256, 8),
        ("sm120", 32, 0, 256, 48),
        ("gfx1151", 190, 34304, 256, 24),  # registers for four blocks, LDS for three
        ("gfx1151", 33, 128, 256, 64),
        ("gfx1151", 250, 0, 32, 20),
        ("sm90", 32, 0, 32, 32),  # at most 32 blocks
    ],
)
def test_waves_by_hand(arch: str, registers: int, shared: int, threads: int, waves: int) -> None:
    assert kernels.CHIPS[arch].resident(registers, shared, threads) == waves


TABLES = {
    "cpp": {
        "sm_90a": {
            "moe_streamed": [
                {"kernel": "openmythos_moe_streamed_up_bf16_rows1", "registers": 115, "spills": 0, "shared": 1216},
                {"kernel": "openmythos_moe_streamed_down_bf16_rows16", "registers": 118, "spills": 0, "shared": 26884},
            ],
        },
    },
    "triton": {
        "sm90": {
            "one": [{"kernel": "_k", "config": "A=1 num_warps=4", "registers": 40, "spills": 0, "shared": 0}],
            "two": [{"kernel": "_k", "config": "A=2 num_warps=8", "registers": 255, "spills": 3, "shared": 65536}],
        },
        "gfx1151": {"one": [{"kernel": "_k", "config": "num_warps=4", "registers": 40, "spills": 0, "shared": 0}]},
    },
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for source, compiled in TABLES.items():
        folder = tmp_path / "tests" / "golden" / source
        folder.mkdir(parents=True)
        table = {"compilers": {}, "compiled": compiled, "executed": []}
        (folder / "op.json").write_text(json.dumps(table), encoding="utf-8")
    return tmp_path


def test_tables_of_both_sources(root: Path) -> None:
    triton, down, up = kernels.kernels("sm_90a", root)
    assert up == ("openmythos_moe_streamed_up_bf16_rows1", "sm_90a", 1, 115, 0, 1216, 16, 16 * 8192)
    assert down[-2:] == (16, 16 * 4096)
    assert triton == ("_k", "sm_90a", 2, 255, 3, 65536, 8, 0)


def test_an_unknown_architecture_is_named(root: Path) -> None:
    with pytest.raises(ValueError, match="--arch sm_70: known are gfx1151, sm90, sm_90a"):
        kernels.kernels("sm_70", root)


def test_dynamic_shared_memory_and_tiles_by_hand() -> None:
    """Two stages of tiles of 64 keys, 192 columns of keys and values for 1b; three of 256 rows for the experts."""
    assert kernels.shape("openmythos_mla_decompressed_bf16_64_32_64", "sm_90a") == (256, 50176, 24576)
    assert kernels.shape("openmythos_mla_decompressed_f16_128_64_128", "gfx1151") == (256, 40960, 20480)
    assert kernels.shape("openmythos_moe_grouped_up_bf16", "sm_90a") == (256, 99328, 65536)
    assert kernels.shape("openmythos_mla_absorbed_bf16_1024_64", "gfx1151").flight == 16 * 1088 * 2
    assert kernels.shape("openmythos_mla_absorbed_f16_512_64_rows32", "sm_90a").flight == 32 * 576 * 2


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100", "sm_120", "gfx1100", "gfx1151"])
def test_every_kernel_fits_and_none_spills(arch: str) -> None:
    found = kernels.kernels(arch)
    assert all(row.waves > 0 and row.spills == 0 for row in found)
    streaming = {row.name.split("_")[1] for row in found if row.name.startswith("openmythos") and row.flight}
    assert streaming == {"moe", "mla"}


def test_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["roofline", "--kernels", "--arch", "sm_90a"])
    main()
    text = capsys.readouterr().out
    assert "### sm_90a: compiled, not run" in text
    assert "| `moe_streamed_up_bf16_rows1` | 1 | 115 | 0 | 1,216 B | 16 | 131 kB |" in text
    assert "4,300 GB/s and 1 us of latency need 33 kB in flight in each multiprocessor." in text
