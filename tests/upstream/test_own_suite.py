"""Upstream's own tests pass with only the import renamed.

They are in upstream's repository, not in its package: OPENMYTHOS_UPSTREAM names a checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

CHECKOUT = os.environ.get("OPENMYTHOS_UPSTREAM", "")
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not CHECKOUT, reason="OPENMYTHOS_UPSTREAM does not name a checkout of upstream's repository")
def test_all_67_pass(tmp_path: Path) -> None:
    source = Path(CHECKOUT) / "tests" / "test_main.py"
    assert source.is_file(), f"OPENMYTHOS_UPSTREAM={CHECKOUT}: has no tests/test_main.py"
    text = source.read_text()
    assert text.count("from open_mythos.main import") == 1
    (tmp_path / "test_main.py").write_text(text.replace("from open_mythos.main import", "from openmythos import"))
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "test_main.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": 67, "failures": 0, "errors": 0, "skipped": 0}, done.stdout[-4000:]
