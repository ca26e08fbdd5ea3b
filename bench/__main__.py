"""Run the benchmarks and report them under bench/results/<device>/: `python -m bench [pytest's arguments]`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from openmythos.roofline import device_name

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run, record, report; a failed run keeps the earlier record."""
    folder = ROOT / "bench" / "results" / device_name()
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / "bench.json.new"
    suite = [sys.executable, "-m", "pytest", "bench", f"--benchmark-json={fresh}", *sys.argv[1:]]
    status = subprocess.run(suite, cwd=ROOT, check=False).returncode
    if status:
        fresh.unlink(missing_ok=True)
        return status
    fresh.replace(folder / "bench.json")
    return subprocess.run([sys.executable, "-m", "bench.report", str(folder)], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
