"""The command `openmythos`: one function a subcommand, listed in `COMMANDS`."""

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
    parser = commands.add_parser("doctor", help="what this machine has, and which backend serves which op")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")

    def run(args: argparse.Namespace) -> int:
        from openmythos.doctor import doctor

        return doctor(as_json=args.json)

    parser.set_defaults(run=run)


def _demo(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("demo", help="upstream's model and this one side by side on the same text")
    parser.add_argument("--size", choices=("1b", "small"), default="1b", help="mythos_1b (the default), or 30 seconds")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for demo.json and demo.png")
    parser.add_argument("--rounds", type=_positive, help="at most so many timed rounds (default: what time allows)")

    def run(args: argparse.Namespace) -> int:
        from openmythos.demo import DemoError, run_demo

        try:
            run_demo(args.size, args.out, args.rounds)
        except DemoError as error:
            print(f"openmythos demo: {error}", file=sys.stderr)
            return 1
        return 0

    parser.set_defaults(run=run)


COMMANDS: tuple[Callable[[argparse._SubParsersAction], None], ...] = (_doctor, _demo)


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
