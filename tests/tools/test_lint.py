"""tools.lint finds each fault that is planted in a small tree, says where, and accepts correct code."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import lint

HEAD = "from __future__ import annotations\n"
Plant = Callable[..., list[str]]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Writes files by path and returns the findings as text."""

    def write(files: dict[str, str]) -> list[str]:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return [str(finding) for finding in lint.findings(tmp_path)]

    return write


SPLITS = {
    "slice": "params = rest[:8]",
    "slice-to-the-end": "t, eps = rest[8:]",
    "index": "t = rest[8]",
    "named-width": "params = rest[:PARAMS]",
    "length": "absorbed = len(args) == 11",
    "starred-in-the-middle": "*params, t, eps, loop_dim = rest",
    "starred-and-one": "*tensors, form = args",
    "starred-last": "x, *others = args",
}


@pytest.mark.parametrize("line", SPLITS.values(), ids=SPLITS)
def test_positional_splits(plant: Plant, line: str) -> None:
    (found,) = {text.split(" ")[0] for text in plant({"openmythos/backends/cpp.py": f"{HEAD}{line}\n"})}
    assert found == "openmythos/backends/cpp.py:2:"


@pytest.mark.parametrize(
    "line",
    ["device = tensors[0].device", "first, *others = call.experts.shared", "x = shape[2:]", "n = len(shape) == 3"],
)
def test_reading_by_name_is_no_split(plant: Plant, line: str) -> None:
    assert plant({"openmythos/backends/cpp.py": f"{HEAD}{line}\n"}) == []


def test_tests_may_split(plant: Plant) -> None:
    assert plant({"tests/test_x.py": f"{HEAD}params = rest[:8]\n"}) == []


def test_a_parameter_in_too_many_files(plant: Plant) -> None:
    files = {f"csrc/loop_step/{i}.cpp": "float* halt_w;\n" for i in range(8)}
    backward = {
        "triton_kernels/loop_step/backward.py": f"{HEAD}halt_w = 1\n",
        "tests/test_x.py": f"{HEAD}halt_w = 1\n",
    }
    assert plant(files | backward) == []
    (found,) = plant({"openmythos/nn/recurrent.py": f"{HEAD}halt_w = 1\n"})
    assert found.startswith(
        "openmythos/nn/recurrent.py:2: `halt_w` is spelt in 9 product files, at most 8 are allowed:"
    )


@pytest.mark.parametrize("word", [word for group in lint.WORDS for word in group])
@pytest.mark.parametrize("path", ["openmythos/x.py", "csrc/core/x.h", "docs/x.md", "tests/x.py", "tools/x/README.md"])
def test_words(plant: Plant, path: str, word: str) -> None:
    found = plant({path: f"{HEAD}\n# It is {word.capitalize()}, here.\n"})
    assert any(text.startswith(f'{path}:3: "{word}": ') for text in found)


def test_words_within_other_words_are_fine(plant: Plant) -> None:
    assert plant({"openmythos/x.py": f'{HEAD}text = "spaces, classrooms, softened, shares a multiprocessor"\n'}) == []


def test_words_within_identifiers(plant: Plant) -> None:
    (found,) = plant({"openmythos/x.py": f"{HEAD}slab_bytes = 1\n"})
    assert found.startswith('openmythos/x.py:2: "slab": ')


CIRCLES = {
    "direct": {"openmythos/a.py": "from openmythos.b import y", "openmythos/b.py": "import openmythos.a"},
    "of-three": {
        "openmythos/a.py": "from openmythos import b",
        "openmythos/b.py": "from openmythos.triton_kernels.c import z",
        "triton_kernels/c.py": "from openmythos.a import x",
    },
    "relative": {"openmythos/p/a.py": "from .b import y", "openmythos/p/b.py": "from . import a"},
    "type-checking": {
        "openmythos/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from openmythos.b import y",
        "openmythos/b.py": "from openmythos.a import x",
    },
}


@pytest.mark.parametrize("files", CIRCLES.values(), ids=CIRCLES)
def test_import_circles(plant: Plant, files: dict[str, str]) -> None:
    (found,) = plant({name: f"{HEAD}{text}\n" for name, text in files.items()})
    assert "imports form a circle: openmythos." in found


def test_an_import_inside_a_function_closes_no_circle(plant: Plant) -> None:
    inside = f"{HEAD}def f():\n    from openmythos.a import x\n    return x\n"
    assert plant({"openmythos/a.py": f"{HEAD}from openmythos.b import f\n", "openmythos/b.py": inside}) == []


UPWARD = {
    "nn-engine": ("openmythos/nn/x.py", "from openmythos.engine.cache import KVCache", "nn must not import engine"),
    "ops-nn": ("openmythos/ops/moe/x.py", "from openmythos import nn", "ops must not import nn"),
    "ops-backends": ("openmythos/ops/x.py", "import openmythos.backends.cpp", "ops must not import backends"),
    "dispatch-ops": ("openmythos/dispatch.py", "from openmythos.ops import moe", "dispatch must not import ops"),
    "backends-nn": ("openmythos/backends/x.py", "from openmythos.nn import y", "backends must not import nn"),
    "kernels-dispatch": ("triton_kernels/x.py", "from openmythos import dispatch", "triton_kernels must not import"),
    "roofline-doctor": ("openmythos/roofline/x.py", "from openmythos.doctor import y", "must not import doctor"),
    "reference-dispatch": ("openmythos/ops/moe/reference.py", "from openmythos import dispatch", "imports torch only"),
    "reference-numpy": (
        "openmythos/ops/moe/reference.py",
        "import numpy",
        "a reference imports torch only, not numpy",
    ),
    "tests": ("openmythos/x.py", "from tests import models", "the product imports tests/"),
}


@pytest.mark.parametrize(("path", "line", "text"), UPWARD.values(), ids=UPWARD)
def test_upward_imports(plant: Plant, path: str, line: str, text: str) -> None:
    modules = {f"openmythos/{name}/__init__.py": "" for name in ("nn", "ops", "engine", "backends")}
    (found,) = plant({**modules, "openmythos/dispatch.py": HEAD, path: f"{HEAD}{line}\n"})
    assert found.startswith(f"{path}:2: ")
    assert text in found


def test_downward_imports_are_fine(plant: Plant) -> None:
    files = {
        "openmythos/engine/step.py": "from openmythos.nn.model import OpenMythos",
        "openmythos/nn/model.py": "from openmythos.ops import moe",
        "openmythos/ops/moe/__init__.py": "from openmythos import dispatch\nfrom openmythos.ops.moe import reference",
        "openmythos/ops/moe/reference.py": "import math\nimport torch\nfrom openmythos.ops.linear.reference import f",
        "openmythos/ops/linear/reference.py": "import torch",
        "openmythos/backends/triton.py": "from openmythos.ops import moe\nfrom openmythos.triton_kernels import moe",
        "triton_kernels/moe/__init__.py": "import triton",
        "openmythos/dispatch.py": "import torch",
    }
    assert plant({name: f"{HEAD}{text}\n" for name, text in files.items()}) == []


def test_file_length(plant: Plant) -> None:
    assert plant({"csrc/core/x.h": "int x;\n" * 400, "docs/x.md": "word\n" * 500}) == []
    (found,) = plant({"tests/x.py": "x = 1\n" * 401})
    assert found == "tests/x.py:400: 401 lines, at most 400 are allowed: split it by subject."


def test_environment_variables(plant: Plant) -> None:
    known = {"docs/configuration.md": "| `OPENMYTHOS_BACKEND` | |\n"}
    assert plant({**known, "openmythos/x.py": f'{HEAD}NAME = "OPENMYTHOS_BACKEND"\n'}) == []
    found = plant(
        {
            "openmythos/y.py": f'{HEAD}os.environ.get("ROCM_PATH")\nNAME = "OPENMYTHOS_Y"\n',
            "csrc/z.cpp": 'auto z = std::getenv("OPENMYTHOS_Z");\n',
        }
    )
    assert found == [
        "csrc/z.cpp:1: OPENMYTHOS_Z is not described in docs/configuration.md.",
        "openmythos/y.py:2: ROCM_PATH is not described in docs/configuration.md.",
        "openmythos/y.py:3: OPENMYTHOS_Y is not described in docs/configuration.md.",
    ]


def test_words_of_the_documentation(plant: Plant) -> None:
    assert plant({"README.md": "word " * 4000, "CHANGELOG.md": "word " * 9000, "docs/x.md": "word " * 3999}) == []
    (found,) = plant({"CONTRIBUTING.md": "word"})
    assert found == "README.md:1: the documentation has 8000 words, fewer than 8000 are allowed."


def test_files_that_the_documentation_names(plant: Plant) -> None:
    files = {
        "README.md": "[page](docs/x.md#part) [web](https://x.org/y) [part](#part) `csrc/x.h` `tests/ops/x/y.py`\n",
        "docs/x.md": "word\n\n[readme](../README.md) ![picture](none.png) `csrc/core/none.h` `bench/bench_x.py`\n",
        "csrc/x.h": "int x;\n",
    }
    assert plant(files) == ["docs/x.md:3: csrc/core/none.h does not exist.", "docs/x.md:3: none.png does not exist."]


def test_command_line(plant: Plant, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.lint", str(tmp_path)]
    root = Path(lint.__file__).parents[1]
    plant({"openmythos/x.py": HEAD})
    assert subprocess.run(command, cwd=root, check=False).returncode == 0
    plant({"openmythos/x.py": f"{HEAD}params = rest[:8]\n"})
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("openmythos/x.py:2: `rest[:8]` splits arguments by position")


def test_the_project_is_linted_in_two_seconds() -> None:
    begun = time.process_time()
    lint.findings(Path(lint.__file__).parents[1])
    assert time.process_time() - begun < 2
