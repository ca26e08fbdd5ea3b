"""Run the benchmarks and report them: `python -m bench [--only EXPRESSION] [pytest's arguments]`.

The whole suite becomes this machine's record under bench/results/<device>/; a part of it is reported in out/bench/.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from openmythos.roofline import device_name

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run, record, report; a failed run keeps the earlier record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="cases whose names match, as pytest's -k takes it")
    args, rest = parser.parse_known_args()
    folder = ROOT / "out" / "bench" if args.only else ROOT / "bench" / "results" / device_name()
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / "bench.json.new"
    suite = [sys.executable, "-m", "pytest", "bench", f"--benchmark-json={fresh}", *rest]
    status = subprocess.run(suite + (["-k", args.only] if args.only else []), cwd=ROOT, check=False).returncode
    if status:
        fresh.unlink(missing_ok=True)
        return status
    fresh.replace(folder / "bench.json")
    keep = [] if args.only else ["--remember"]
    report = [sys.executable, "-m", "bench.report", str(folder), *keep]
    return subprocess.run(report, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
