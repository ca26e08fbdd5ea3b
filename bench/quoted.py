"""The cases whose ratios are quoted: they get more rounds, and `bench.repeat` shows how repeatable they are."""

from __future__ import annotations

# Quoted as one number: ratios that move by 5% or less between runs. Names as in the report.
HEADLINES = (
    "model decode[float32]",
    "model decode[bfloat16]",
    "moe decode[1b-float32]",
    "moe decode[1b-bfloat16]",
    "loop_step [1b-4096-float32]",
    "mla_attention prefill[1b-1024-float32]",
)
# Quoted as a range over several runs: few long rounds, or baselines whose time is bimodal.
RANGES = (
    "model prefill[float32]",
    "model prefill[bfloat16]",
    "moe prefill[1b-float32-128]",
    "moe prefill[1b-bfloat16-128]",
    "loop_step [1b-4096-bfloat16]",
    "mla_attention decode[1b-4096-float32]",
)
QUOTED = HEADLINES + RANGES


def short(node: str) -> str:
    """ "moe decode[1b-bfloat16]" of "bench/bench_moe.py::bench_decode[1b-bfloat16]"."""
    file, case = node.split("bench_", 1)[1].split(".py::bench_")
    return f"{file} {case}".replace(f"{file} {file}[", f"{file} [").replace(f"{file} {file}_", f"{file} ")
