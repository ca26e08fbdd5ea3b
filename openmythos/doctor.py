"""`openmythos doctor`: what the machine has, which backend serves each op, and why the others do not."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

import openmythos
from openmythos import dispatch
from openmythos.backends import library
from openmythos.host import cores, cpu_name, version_of
from openmythos.samples import samples
from openmythos.terminal import console, table_box

# PyTorch's own variable: without it gfx1151 has no fused attention.
AOTRITON = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"
VARIABLES = (
    "OPENMYTHOS_BACKEND",
    "OPENMYTHOS_CPU_ISA",
    "OPENMYTHOS_BUILD",
    "OPENMYTHOS_ROCM_VERSION",
    "OPENMYTHOS_UPSTREAM",
    "OPENMYTHOS_TINYGRAD",
    AOTRITON,
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# name -> (new tokens, cached tokens)
CALLS = {"decode": (1, 128), "prefill": (128, 0)}


def _try(question: Callable[[], object]) -> object:
    """The answer, or the error as text: one broken part must not end the report."""
    try:
        return question()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _versions() -> dict[str, str]:
    return {
        "openmythos": openmythos.__version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "torch": torch.__version__,
        "triton": version_of("triton", "triton-rocm", "pytorch-triton-rocm", "pytorch-triton") or "not installed",
        "open_mythos": version_of("open-mythos") or "not installed (the demo and the tests compare with it)",
        "system": platform.platform(),
    }


def _gpus() -> list[str] | str:
    if not torch.cuda.is_available():
        return "none: no CUDA or ROCm device is visible to torch"
    kind = "ROCm" if torch.version.hip else "CUDA"
    found = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        arch = getattr(device, "gcnArchName", "") if torch.version.hip else f"sm_{device.major}{device.minor}"
        found.append(f"cuda:{index}: {device.name}, {arch}, {device.total_memory / 2**30:.0f} GiB, {kind}")
    return found


def _native() -> dict[str, object]:
    """The compiled parts: the op library, and the module that reports what the CPU can run."""
    reason = library.missing()
    if reason is not None:
        return {"library": f"missing: {reason}", "cpu isa": "none: plain PyTorch serves every op"}
    facts: dict[str, object] = {
        "library": "loaded",
        "cpu isa": _try(library.cpu_isa),
        "gpu code": _try(library.gpu_code),
    }
    try:
        from openmythos import _native as native
    except ImportError as error:
        facts["cpu features"] = f"unknown: openmythos._native does not import ({error})"
        return facts
    facts["cpu isa variants"] = ", ".join(native.isa_variants()) or "none that this CPU can run"
    facts["cpu features"] = ", ".join(sorted(name for name, has in native.cpu_features().items() if has))
    facts |= {f"{vendor} driver": text for vendor, text in native.gpu_devices().items()}
    facts["build"] = ", ".join(f"{name} {value}" for name, value in native.build_info().items())
    return facts


def _threads() -> str:
    return f"{torch.get_num_threads()} (torch.get_num_threads()), on {cores()} logical cores"


def _environment() -> dict[str, str]:
    """The variables that are set, including unknown ones with our prefix, which are marked."""
    ours = {name: value for name, value in os.environ.items() if name.startswith("OPENMYTHOS_") or name in VARIABLES}
    return {name: value if name in VARIABLES else f"{value} (no such variable)" for name, value in ours.items()}


def _warnings() -> list[str] | str:
    """Settings that make this machine slower than it could be."""
    if not (torch.version.hip and torch.cuda.is_available()) or os.environ.get(AOTRITON) == "1":
        return "none"
    names = [torch.cuda.get_device_properties(index).gcnArchName for index in range(torch.cuda.device_count())]
    slow = [f"cuda:{index}" for index, name in enumerate(names) if name.split(":")[0] == "gfx1151"]
    if not slow:
        return "none"
    return [
        f"{', '.join(slow)}: torch disables its experimental fused attention for gfx1151, so that "
        "scaled_dot_product_attention writes all scores to memory; "
        f"set {AOTRITON}=1 before the start to enable it"
    ]


def _decisions() -> list[dict[str, object]]:
    """One record for each device, op, dtype and call size, with the decision of every backend."""
    records = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for dtype in DTYPES:
            for size, (tokens, past) in CALLS.items():
                for op, call in sorted(samples(dtype, device, tokens, past).items()):
                    answer = _try(lambda op=op, call=call: dispatch.explain(op, call))
                    record = {"device": device, "op": op, "dtype": str(dtype).removeprefix("torch."), "call": size}
                    records.append(record | _decision(answer))
    return records


def _decision(answer: list[dispatch.Decision] | str) -> dict[str, object]:
    if isinstance(answer, str):
        return {"chosen": None, "rejected": {"all": answer}}
    chosen = [choice.backend for choice in answer if choice.chosen]
    rejected = {choice.backend: choice.reason for choice in answer if not choice.chosen}
    return {"chosen": chosen[0] if chosen else None, "rejected": rejected}


def examine() -> dict[str, object]:
    """Everything that `openmythos doctor` reports, as plain data."""
    return {
        "versions": _try(_versions),
        "cpu": cpu_name(),
        "gpus": _try(_gpus),
        "native": _try(_native),
        "threads": _try(_threads),
        "environment": _environment(),
        "warnings": _try(_warnings),
        "dispatch": _try(_decisions),
    }


def _lines(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {item}" for name, item in value.items()) or "none set"
    return "\n".join(value) if isinstance(value, list) else str(value)


def _facts_table(report: dict[str, object], out: Console) -> Table:
    table = Table("fact", "value", box=table_box(out))
    for name, value in report.items():
        if name == "dispatch":
            continue
        for i, line in enumerate(_lines(value).splitlines()):
            table.add_row(name if i == 0 else "", Text(line))
    return table


def _grouped(records: list[dict]) -> dict[tuple, dict[str, list[str]]]:
    """{(device, op, outcome): {call: dtypes}}: calls with the same outcome share a line."""
    groups: dict[tuple, dict[str, list[str]]] = {}
    for record in records:
        key = (record["device"], record["op"], record["chosen"], tuple(record["rejected"].items()))
        groups.setdefault(key, {}).setdefault(record["call"], []).append(record["dtype"])
    return groups


def _when(calls: dict[str, list[str]]) -> str:
    """ "decode float32, bfloat16; prefill float32", or only the dtypes where both call sizes agree."""
    dtypes = list(calls.values())
    if len(calls) == len(CALLS) and all(names == dtypes[0] for names in dtypes):
        return ", ".join(dtypes[0])
    return "; ".join(f"{call} {', '.join(names)}" for call, names in calls.items())


def _dispatch_table(records: list[dict], out: Console) -> Table:
    table = Table("device", "op", "calls", "served by", "why not the others", box=table_box(out))
    for (device, op, chosen, rejected), calls in sorted(_grouped(records).items(), key=lambda item: item[0][:2]):
        others = "; ".join(f"{backend}: {reason}" for backend, reason in rejected)
        table.add_row(device, op, _when(calls), chosen or "nothing", Text(others or "there are none"))
    return table


def doctor(*, as_json: bool = False) -> int:
    """Print the report as tables, or as one JSON object; returns the exit status, 0."""
    report = examine()
    if as_json:
        print(json.dumps(report, indent=2))
        return 0
    out = console()
    out.print("This machine")
    out.print(_facts_table(report, out))
    if isinstance(report["dispatch"], str):
        out.print(Text(f"The dispatch table could not be read: {report['dispatch']}"))
    else:
        out.print("Backends by op (decode: 1 token after 128 cached ones; prefill: 128 tokens)")
        out.print(_dispatch_table(report["dispatch"], out))
    return 0
