"""Memory of this process around one step on an upstream model, as JSON; run as a module in a fresh process.

Pages of libraries are not counted, since the kernel drops and reloads them at any time.

python -m tests.acceleration.memory [accelerate|copy|save|load] [float32|bfloat16] [small|mythos_1b]
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

import openmythos

# mythos_1b's shape at a third of its width: 64 experts, 300 MB in float32.
SMALL = {
    "vocab_size": 10_000,
    "dim": 640,
    "n_heads": 10,
    "n_kv_heads": 2,
    "kv_lora_rank": 80,
    "q_lora_rank": 160,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "expert_dim": 448,
    "lora_rank": 8,
}


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main(step: str, dtype_name: str, size: str) -> dict[str, float | str]:
    """{empty, before, peak, after}: MB of resident memory without mapped files, and seconds."""
    torch.set_num_threads(1)
    dtype = getattr(torch, dtype_name)
    config = openmythos.MythosConfig(**SMALL) if size == "small" else getattr(openmythos, size)()
    empty = _status("RssAnon")
    if step in ("accelerate", "copy"):
        import open_mythos

        model = open_mythos.OpenMythos(open_mythos.MythosConfig(**config.to_dict()))
        gc.collect()
        before = _status("RssAnon")
        _reset_peak()
        start = time.perf_counter()
        result = openmythos.accelerate(model, dtype=dtype, copy=step == "copy")
        seconds = time.perf_counter() - start
    else:
        with tempfile.TemporaryDirectory() as folder:
            model = openmythos.OpenMythos(config)
            before = _status("RssAnon")
            _reset_peak()
            start = time.perf_counter()
            openmythos.save(model, folder, max_shard_bytes=2**30)
            seconds = time.perf_counter() - start
            result = model
            if step == "load":
                del model, result
                gc.collect()
                before = _status("RssAnon")
                _reset_peak()
                start = time.perf_counter()
                result = openmythos.load(folder, dtype=dtype)
                seconds = time.perf_counter() - start
    # Files mapped only during the step, such as weights, do count.
    peak, after = _status("VmHWM") - _status("RssFile"), _status("RssAnon")
    weights = sum(parameter.nbytes for parameter in result.parameters()) / 2**20
    return {
        "step": step,
        "dtype": dtype_name,
        "size": size,
        "empty": empty,
        "before": before,
        "peak": peak,
        "after": after,
        "weights": weights,
        "seconds": seconds,
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:4])))
