"""tools.new_op creates an operation that passes lint and its own tests unchanged."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import lint
from tools.new_op.__main__ import ROOT, lay

NAMES = pytest.mark.parametrize("name", ["zoom", "grouped_query_attention"])


def _tool(name: str) -> str:
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.skip(f"{name} is not installed")
    return str(path)


@NAMES
def test_passes_lint(tmp_path: Path, name: str) -> None:
    written = lay(name, tmp_path)
    python = [str(path) for path in written if path.suffix == ".py"]
    config = str(ROOT / "pyproject.toml")
    subprocess.run([_tool("ruff"), "check", "--config", config, *python], check=True, cwd=ROOT)
    subprocess.run([_tool("ruff"), "format", "--check", "--config", config, *python], check=True, cwd=ROOT)
    native = [str(path) for path in written if path.suffix in (".cpp", ".h", ".cu")]
    if native:
        style = f"--style=file:{ROOT / '.clang-format'}"
        subprocess.run([_tool("clang-format"), "--dry-run", "-Werror", style, *native], check=True)
    assert lint.findings(tmp_path) == []


def test_every_folder_has_its_files(tmp_path: Path) -> None:
    written = {path.relative_to(tmp_path).as_posix() for path in lay("zoom", tmp_path)}
    folders = ("openmythos/ops/zoom/", "csrc/zoom/", "triton_kernels/zoom/", "tests/ops/", "bench/")
    assert all(any(path.startswith(folder) for path in written) for folder in folders), written
    assert all("newop" not in path.read_text().lower() for path in tmp_path.rglob("*") if path.is_file())


def test_the_table_of_cpu_kernels_has_it(tmp_path: Path) -> None:
    folder = tmp_path / "csrc" / "core" / "cpu"
    folder.mkdir(parents=True)
    for file in ("kernels.h", "table.cpp"):
        shutil.copy(ROOT / "csrc" / "core" / "cpu" / file, folder)
    lay("zoom", tmp_path)
    header, table = ((folder / file).read_text() for file in ("kernels.h", "table.cpp"))
    assert '#include "../../zoom/args.h"\n\n' in header
    assert "    void (*zoom)(const Threads&, const ZoomArgs&);\n};" in header
    assert "void zoom(const Threads&, const ZoomArgs&);\n\n" in table
    assert re.search(r",\s+zoom\};", table)


# an installed package finds the new operation by the same path
RUN = """
import sys, pytest, openmythos.ops, openmythos.triton_kernels
openmythos.ops.__path__.append(f"{sys.argv[1]}/openmythos/ops")
import openmythos.ops.zoom
sys.exit(pytest.main(["-q", "-n0", "-c", "pyproject.toml", "-p", "no:cacheprovider", "--rootdir", ".", sys.argv[2]]))
"""


def test_passes_its_own_tests(tmp_path: Path) -> None:
    lay("zoom", tmp_path)
    target = str(tmp_path / "tests" / "ops" / "test_zoom.py")
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path), target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["", "RmsNorm", "2x", "a-b", "a__b", "a/b"])
def test_a_bad_name_is_a_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="must be snake_case"):
        lay(name, tmp_path)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    first = lay("zoom", tmp_path)
    first[-1].unlink()
    with pytest.raises(FileExistsError, match="choose another NAME"):
        lay("zoom", tmp_path)
    assert not first[-1].exists()
