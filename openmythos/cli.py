"""The command `openmythos`: one function for each subcommand, listed in `COMMANDS`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import openmythos


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be at least 1")
    return value


def _doctor(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("doctor", help="what this machine has, and which backend serves each op")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")

    def run(args: argparse.Namespace) -> int:
        from openmythos.doctor import doctor

        return doctor(as_json=args.json)

    parser.set_defaults(run=run)


def _demo(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("demo", help="upstream's model and this one side by side on the same text")
    parser.add_argument("--size", choices=("1b", "small"), default="1b", help="mythos_1b (the default), or 30 seconds")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for demo.json and demo.png")
    parser.add_argument("--rounds", type=_positive, help="the most timed rounds (default: as time allows)")

    def run(args: argparse.Namespace) -> int:
        from openmythos.demo import DemoError, run_demo

        try:
            run_demo(args.size, args.out, args.rounds)
        except DemoError as error:
            print(f"openmythos demo: {error}", file=sys.stderr)
            return 1
        return 0

    parser.set_defaults(run=run)


def _plan(commands: argparse._SubParsersAction) -> None:
    from openmythos.config import VARIANTS

    parser = commands.add_parser("plan", help="what fits on a machine, best tokens a second, number of devices")
    parser.add_argument("variant", choices=[name.removeprefix("mythos_") for name in VARIANTS])
    parser.add_argument("--device", default="here", help="h200, gfx1151, here (measured now) or a name of your own")
    parser.add_argument("--bandwidth", type=float, help="GB/s, instead of the device's")
    parser.add_argument("--flops", type=float, help="TFLOP/s in the dtype, instead of the device's")
    parser.add_argument("--memory", type=float, help="GB, instead of the device's")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--context", type=int, default=4096, help="tokens a sequence (default: 4096)")
    parser.add_argument("--batch", type=int, default=1, help="sequences (default: 1)")
    parser.add_argument("--loops", type=int, help="loops (default: the variant's)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")

    def run(args: argparse.Namespace) -> int:
        from openmythos import plan

        variant = f"mythos_{args.variant}"
        loops = VARIANTS[variant]().max_loop_iters if args.loops is None else args.loops
        try:
            machine, device = plan.machine_for(args.device, args.bandwidth, args.flops, args.memory, args.dtype)
            request = plan.Request(variant, machine, device, args.context, args.batch, loops, args.dtype)
            made = plan.make_plan(request)
        except plan.PlanError as error:
            print(f"openmythos plan: {error}", file=sys.stderr)
            return 2
        print(plan.as_json(made)) if args.json else plan.show(made)
        return 0

    parser.set_defaults(run=run)


COMMANDS: tuple[Callable[[argparse._SubParsersAction], None], ...] = (_doctor, _demo, _plan)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(prog="openmythos", description=openmythos.__doc__)
    parser.add_argument("--version", action="version", version=f"openmythos {openmythos.__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    for add in COMMANDS:
        add(commands)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
