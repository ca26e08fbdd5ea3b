"""Bytes, FLOPs and floor of every op and of the whole model, by variant and machine.

python -m bench.roofline --device h200
python -m bench.roofline --device box --bandwidth 256 --flops 50 --memory 64
python -m bench.roofline --kernels --arch sm_90a --arch gfx1151
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch

from bench import kernels
from openmythos.config import VARIANTS, MythosConfig
from openmythos.ops.linear import cost as linear_cost
from openmythos.ops.linear import sample as linear
from openmythos.ops.loop_step import cost as loop_step_cost
from openmythos.ops.loop_step import sample as loop_step
from openmythos.ops.moe import cost as moe_cost
from openmythos.ops.moe import sample as moe
from openmythos.ops.rms_norm import cost as rms_norm_cost
from openmythos.ops.rms_norm import sample as rms_norm
from openmythos.plan import DTYPES, HERE, PlanError, machine_for, size
from openmythos.roofline import Cost, Machine, model, total

# rows of a training batch, keys of a long cache, tokens of a prompt
ROWS, KEYS, PROMPT = 8192, 4096, 128


class Row(NamedTuple):
    """One line: what runs, its cost, the floor in seconds, and what bounds it."""

    name: str
    cost: Cost
    floor: float
    bound: str


def costs(cfg: MythosConfig, dtype: torch.dtype) -> dict[str, Cost]:
    """Every op at a decoding and at a training size, and the whole model."""
    heads, sizes, loops = model.heads_of(cfg), model.experts_of(cfg), cfg.max_loop_iters
    kind = (dtype, model.DEVICE)
    step = (ROWS, cfg.dim, cfg.lora_rank, loops, *kind)
    decode = model.decode(cfg, 1, KEYS - 1, loops, dtype)
    prefill = model.forward(cfg, 1, PROMPT, 0, loops, dtype)
    train = model.train_step(cfg, 2, KEYS, loops, dtype)
    norm = rms_norm_cost.rms_norm_add(rms_norm.rms_norm_add(ROWS, cfg.dim, *kind))
    return {
        f"rms_norm with residual, {ROWS} rows": norm,
        f"loop_step, {ROWS} rows": loop_step_cost.loop_step(loop_step.loop_step(*step)),
        f"loop_step backward, {ROWS} rows": loop_step_cost.loop_step_backward(loop_step.loop_step_backward(*step)),
        f"mla_attention, 1 query over {KEYS} keys": model.mla_attention(heads, 1, 1, KEYS, dtype),
        f"mla_attention, prefill of {KEYS}": model.mla_attention(heads, 1, KEYS, KEYS, dtype),
        "moe, 1 row": moe_cost.moe(moe.moe_experts(1, sizes, *kind)),
        f"moe, {ROWS} rows": moe_cost.moe(moe.moe_experts(ROWS, sizes, *kind)),
        "head, 1 row": linear_cost.linear(linear.linear(1, cfg.dim, cfg.vocab_size, *kind)),
        f"decoded token, {loops} loops, {KEYS} cached": total(decode.values()),
        f"prefill of {PROMPT}, {loops} loops": total(prefill.values()),
        f"training step, 2 x {KEYS}, {loops} loops": total(train.values()),
    }


def rows(cfg: MythosConfig, machine: Machine, dtype: str) -> list[Row]:
    """`costs` with their floors on a machine."""
    return [
        Row(name, cost, machine.floor(cost, dtype), machine.bound(cost, dtype))
        for name, cost in costs(cfg, DTYPES[dtype]).items()
    ]


def duration(seconds: float) -> str:
    """Seconds in a readable unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def markdown(variant: str, machine: Machine, dtype: str) -> str:
    """The rows of one variant as a table."""
    lines = [
        f"### {variant}, {dtype}, {machine.name}: {machine.bandwidth / 1e9:,.0f} GB/s, "
        f"{machine.rate(dtype) / 1e12:.3g} TFLOP/s",
        "",
        "| | bytes | FLOPs | floor | bound by |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for name, cost, floor, bound in rows(VARIANTS[variant](), machine, dtype):
        lines.append(f"| {name} | {size(cost.bytes)} | {size(cost.flops, 'FLOP')} | {duration(floor)} | {bound} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables of all variants on one machine, or those of the compiled GPU kernels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=HERE, help="h200, gfx1151, here (measured now) or a name of your own")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    for name, unit in (("bandwidth", "GB/s"), ("flops", "TFLOP/s"), ("memory", "GB")):
        parser.add_argument(f"--{name}", type=float, help=unit)
    parser.add_argument("--kernels", action="store_true", help="registers, shared memory and waves of the GPU kernels")
    parser.add_argument("--arch", action="append", help="of --kernels: sm_90a and gfx1151 by default")
    args = parser.parse_args()
    try:
        if args.kernels:
            print("\n\n".join(kernels.markdown(arch) for arch in args.arch or ("sm_90a", "gfx1151")))
            return
        machine, _ = machine_for(args.device, args.bandwidth, args.flops, args.memory, args.dtype)
        tables = [markdown(variant, machine, args.dtype) for variant in VARIANTS]
    except (PlanError, ValueError) as error:
        parser.error(str(error))
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
