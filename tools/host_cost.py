"""The host's cost of a GPU op: python -m tools.host_cost.

Times the checks, plan and launch of `csrc/<op>/bind.cpp` on CPU tensors with a driver that does nothing. The driver's
own time, torch's stream lookup and a few device checks come on top. Times are CPU time of this thread, which other
programs disturb little, and medians over interleaved rounds.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from openmythos import dispatch, ops
from openmythos.backends import cpp, library
from openmythos.ops.loop_step import LoopParams
from tools.recording_driver import FakeOps, load_ops, serve

ARCH = "gfx1151"
# mythos_1b, one token at 16 loops
WIDTH, RANK, LOOPS, HEADS, LATENT, ROPE, KEYS, EXPERTS, INNER, TOP_K = 2048, 8, 16, 16, 256, 32, 64, 64, 8, 4
CALLS = 200
# Prints the CPU seconds between its statements; runs in a process of its own.
FIRST = """
import time
import torch
marks = [time.process_time()]
import openmythos
marks.append(time.process_time())
from openmythos import ops
x, weight = torch.ones(1, 2048), torch.ones(2048)
with torch.no_grad():
    marks.append(time.process_time())
    ops.rms_norm(x, weight)
    marks.append(time.process_time())
    ops.rms_norm(x, weight)
    marks.append(time.process_time())
print(marks[1] - marks[0], marks[3] - marks[2], marks[4] - marks[3])
"""


def serve_cpu_tensors(fake: FakeOps) -> None:
    """Let the dispatch table send CPU tensors to the fake driver, by the entries of "cuda"."""
    cpp._native = functools.cache(serve(fake))
    for op, device in list(dispatch._table):
        if device == "cuda":
            dispatch._table[op, "cpu"] = dispatch._table[op, "cuda"]


def cases(fake: FakeOps) -> dict[str, tuple[Callable, Callable]]:
    """The op itself, with outputs as arguments, and the public function for the same work."""
    half, x = {"dtype": torch.bfloat16}, torch.ones(1, WIDTH, dtype=torch.bfloat16)
    wide, out, state, cum_p = torch.ones(WIDTH), x.clone(), torch.ones(1, WIDTH), torch.zeros(1)
    low, scale, bias = torch.ones(RANK, WIDTH), torch.ones(LOOPS, RANK), torch.zeros(1)
    params = LoopParams(wide, wide, low, scale, low, wide, bias, wide)
    step = {"threshold": 0.99, "eps": 1e-6, "loop_dim": WIDTH // 8}
    step_args = (state, x, x, state, cum_p, *params, 3, None, *step.values(), out, state, state, cum_p)
    queries = torch.ones(1, 1, HEADS, 64, **half), torch.ones(1, 1, HEADS, ROPE, **half)
    keys = torch.ones(1, KEYS, LATENT, **half), torch.ones(1, KEYS, ROPE, **half)
    heads = torch.ones(HEADS, 64, LATENT, **half), torch.ones(HEADS, 64, LATENT, **half)
    attended = torch.ones(1, 1, HEADS, 64, **half), torch.ones(1, HEADS, 1)
    ids, weights = torch.zeros(1, TOP_K, dtype=torch.int32), torch.ones(1, TOP_K)
    experts = torch.ones(EXPERTS, 2, INNER, WIDTH, **half), torch.ones(EXPERTS, WIDTH, INNER, **half)
    o = fake.ops
    return {
        "loop_step_": (
            lambda: o.loop_step(*step_args),
            lambda: ops.loop_step_(state, x, x, state, cum_p, params, 3, x_next=out, **step),
        ),
        "rms_norm": (lambda: o.rms_norm(x, None, wide, 1e-6, out, None), lambda: ops.rms_norm(x, wide)),
        "mla_absorbed": (
            lambda: o.mla_absorbed(*queries, *keys, *heads, 0.1, True, None, None, *attended),
            lambda: ops.mla_attention(*queries, *keys, *heads, scale=0.1, causal=True, form="absorbed"),
        ),
        "moe_experts": (
            lambda: o.moe_experts(x, ids, weights, *experts, [], [], [], out),
            lambda: ops.moe_experts(x, ids, weights, ops.StackedExperts(*experts)),
        ),
    }


def time_interleaved(functions: list[Callable], rounds: int) -> list[float]:
    """Median CPU time of one call of each, in microseconds."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, found in zip(functions, times, strict=True):
            begin = time.thread_time_ns()
            for _ in range(CALLS):
                function()
            found.append((time.thread_time_ns() - begin) / CALLS / 1e3)
    return [statistics.median(found) for found in times]


def first_calls(processes: int) -> tuple[float, ...]:
    """Medians in milliseconds: `import openmythos` after torch, the first op on the CPU, the second one."""
    command = [sys.executable, "-c", FIRST]
    said = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(processes)]
    columns = zip(*(map(float, line.split()) for line in said), strict=True)
    return tuple(1e3 * statistics.median(column) for column in columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--processes", type=int, default=9)
    options = parser.parse_args()
    if library.not_loaded() is not None:
        sys.exit(library.not_loaded())
    torch.set_num_threads(1)
    imported, first, second = first_calls(options.processes)
    print(f"import openmythos {imported:.0f} ms, first op on the CPU {first:.1f} ms, second {second:.3f} ms")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        fake = load_ops(Path(folder), ARCH, "FAKE_SILENT")
        serve_cpu_tensors(fake)
        timed = cases(fake)
        for name, (direct, _) in timed.items():
            begin = time.thread_time()
            direct()
            print(f"{name:14} first launch {1e3 * (time.thread_time() - begin):6.2f} ms")
        found = iter(time_interleaved([function for pair in timed.values() for function in pair], options.rounds))
        for name, direct, public in zip(timed, found, found, strict=False):
            print(f"{name:14} op {direct:6.2f} us   public {public:6.2f} us")


if __name__ == "__main__":
    main()
