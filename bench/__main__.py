"""Run the benchmarks and write their report: `python -m bench [--only EXPRESSION] [pytest arguments]`.

A run of the whole suite is recorded in bench/results/<device>/, a part of it in out/bench/.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from openmythos.roofline import device_name

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run, record and report; a failed run leaves the earlier record in place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="only cases whose names match, as in pytest -k")
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
    keep = [] if args.only else ["--store-fractions"]
    report = [sys.executable, "-m", "bench.report", str(folder), *keep]
    return subprocess.run(report, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
