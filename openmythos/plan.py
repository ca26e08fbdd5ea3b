"""`openmythos plan`: what fits on a machine, the fastest it can run, and the devices that larger models need."""

from __future__ import annotations

import dataclasses
import json
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from openmythos.config import VARIANTS, MythosConfig
from openmythos.roofline import MACHINES, Cost, Machine, device_name, measure, model, total
from openmythos.roofline.fractions import measured_fraction
from openmythos.roofline.layout import USABLE, Layout, layouts, training_devices

HERE = "here"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class PlanError(ValueError):
    """The request cannot be planned; the message names the argument and what is allowed."""


class Request(NamedTuple):
    """What to plan: a variant on a machine, cached tokens, new tokens of a prefill, sequences, loops, dtype."""

    variant: str
    machine: Machine
    device: str
    context: int
    batch: int
    loops: int
    dtype: str


class Phase(NamedTuple):
    """One kind of work: the tokens of a call, its cost, its floor in seconds, the measured fraction of that floor."""

    name: str
    tokens: int
    cost: Cost
    bound: str
    floor: float
    fraction: float | None

    @property
    def best(self) -> float:
        """Tokens a second at the floor."""
        return self.tokens / self.floor

    @property
    def expected(self) -> float | None:
        """Tokens a second at the fraction measured on this device."""
        return None if self.fraction is None else self.best * self.fraction


class Plan(NamedTuple):
    """Sizes in bytes, whether they fit on one device, the phases, and layouts over several devices."""

    request: Request
    parameters: int
    weights: int
    cache_token: int
    cache: int
    fits: bool
    max_tokens: int
    phases: list[Phase]
    layouts: list[Layout]
    training: int


def machine_for(
    device: str, bandwidth: float | None, flops: float | None, memory: float | None, dtype: str
) -> tuple[Machine, str]:
    """The machine named `device`, with the ceilings that are given (GB/s, TFLOP/s, GB), and its name in the records.

    Raises:
        PlanError: for an unknown name without all three ceilings.
    """
    for name, value in (("bandwidth", bandwidth), ("flops", flops), ("memory", memory)):
        if value is not None and not value > 0:
            raise PlanError(f"--{name} {value}: must be positive")
    given = None not in (bandwidth, flops, memory)
    if device not in (*MACHINES, HERE) and not given:
        known = ", ".join((*MACHINES, HERE))
        raise PlanError(f"--device {device}: known are {known}; pass --bandwidth, --flops and --memory for any other")
    if given:
        return Machine(device, bandwidth * 1e9, {dtype: flops * 1e12}, memory * 1e9, "given"), device
    if device == HERE:
        with Console(stderr=True).status("measuring this machine") as status:
            machine = measure(status.update)
    else:
        machine = MACHINES[device]
    changes: dict[str, object] = {}
    if bandwidth is not None:
        changes["bandwidth"] = bandwidth * 1e9
    if flops is not None:
        changes["flops"] = {dtype: flops * 1e12}
    if memory is not None:
        changes["memory"] = memory * 1e9
    if changes:
        machine = dataclasses.replace(machine, **changes, source=f"{machine.source}; {', '.join(changes)} given")
    return machine, device_name() if device == HERE else machine.name.lower().replace(" ", "-")


def _check(request: Request, cfg: MythosConfig) -> None:
    for name in ("context", "batch", "loops"):
        if getattr(request, name) < 1:
            raise PlanError(f"--{name} {getattr(request, name)}: must be at least 1")
    if request.context > cfg.max_seq_len:
        raise PlanError(f"--context {request.context}: {request.variant} has at most {cfg.max_seq_len} positions")
    try:
        request.machine.rate(request.dtype)
    except ValueError as error:
        raise PlanError(str(error)) from error


def _phase(request: Request, name: str, tokens: int, parts: dict[str, Cost]) -> Phase:
    cost = total(parts.values())
    return Phase(
        name,
        tokens,
        cost,
        request.machine.bound(cost, request.dtype),
        request.machine.floor(cost, request.dtype),
        measured_fraction(request.device, name, request.dtype),
    )


def make_plan(request: Request) -> Plan:
    """Plan a request.

    Raises:
        PlanError: for a number out of range or a dtype without a rate.
    """
    cfg = VARIANTS[request.variant]()
    _check(request, cfg)
    dtype, machine = DTYPES[request.dtype], request.machine
    count = model.parameters(cfg)
    token_bytes = model.cache_bytes(cfg, request.loops, dtype)
    room = USABLE * machine.memory - count * dtype.itemsize
    cache = token_bytes * request.context * request.batch
    decode = model.decode(cfg, request.batch, request.context, request.loops, dtype)
    prefill = model.forward(cfg, request.batch, request.context, 0, request.loops, dtype)
    return Plan(
        request,
        parameters=count,
        weights=count * dtype.itemsize,
        cache_token=token_bytes,
        cache=cache,
        fits=cache <= room,
        max_tokens=max(0, int(room // token_bytes)),
        phases=[
            _phase(request, "decode", request.batch, decode),
            _phase(request, "prefill", request.batch * request.context, prefill),
        ],
        layouts=layouts(cfg, dtype, machine.memory),
        training=training_devices(cfg, machine.memory),
    )


def as_json(plan: Plan) -> str:
    """The plan as one JSON object: bytes, FLOPs and seconds."""
    request = plan.request._replace(machine=None)._asdict() | {"machine": dataclasses.asdict(plan.request.machine)}
    phases = [
        phase._asdict()
        | {"cost": dataclasses.asdict(phase.cost), "tokens_per_s": phase.best, "expected_tokens_per_s": phase.expected}
        for phase in plan.phases
    ]
    parts = plan._asdict() | {"request": request, "phases": phases}
    return json.dumps(parts | {"layouts": [one._asdict() for one in plan.layouts]}, indent=2)


def size(count: float, unit: str = "B") -> str:
    """A count with a decimal prefix and three digits: 5.31 GB, 680 GFLOP."""
    for prefix, scale in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {prefix}{unit}"
    return f"{count:.3g} {unit}"


def _seconds(value: float) -> str:
    return f"{_rate(value)} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _phase_table(plan: Plan) -> Table:
    table = Table(title="tokens a second", title_justify="left")
    for column in ("", "bytes", "FLOPs", "bound by", "floor", "at best", "expected"):
        table.add_column(column, justify="left" if column in ("", "bound by") else "right", no_wrap=True)
    for phase in plan.phases:
        measured = phase.expected is not None
        expected = f"{_rate(phase.expected)} ({phase.fraction:.0%})" if measured else "not measured"
        cost = (size(phase.cost.bytes), size(phase.cost.flops, "FLOP"))
        table.add_row(phase.name, *cost, phase.bound, _seconds(phase.floor), _rate(phase.best), expected)
    return table


def _layout_table(plan: Plan) -> Table:
    table = Table(title="devices for inference", title_justify="left")
    for column in ("devices", "tensor", "expert", "data parallel", "weights each", "cache each"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in plan.layouts:
        cells = (one.devices, one.tensor, one.experts, one.experts, size(one.weights), size(one.cache))
        table.add_row(*map(str, cells))
    return table


def show(plan: Plan) -> None:
    """Print the plan as tables."""
    request, console = plan.request, Console(highlight=False)
    machine = request.machine
    console.print(
        f"{request.variant} in {request.dtype} on {machine.name}: {machine.bandwidth / 1e9:,.0f} GB/s, "
        f"{machine.rate(request.dtype) / 1e12:,.3g} TFLOP/s, {size(machine.memory)} ({machine.source})"
    )
    verdict = "fits on one device" if plan.fits else "does not fit on one device"
    console.print(
        f"{plan.parameters:,} parameters, {size(plan.weights)}; cache {size(plan.cache_token)} a token at "
        f"{request.loops} loops, {size(plan.cache)} for {request.batch} x {request.context} tokens: {verdict}"
    )
    if plan.max_tokens:
        console.print(f"one device has room for {plan.max_tokens:,} tokens of cache next to the weights")
    console.print(_phase_table(plan))
    if plan.layouts:
        console.print(_layout_table(plan))
    else:
        console.print("no layout fits (tensor parallel 1 to 8, expert parallel)")
    console.print(
        f"training with AdamW in mixed precision: at least {plan.training} device{'s' if plan.training > 1 else ''} "
        "for weights, gradients and optimiser, fully sharded, without activations"
    )
    console.print("Floors count bytes and FLOPs on one device, without communication and launches.", style="dim")
