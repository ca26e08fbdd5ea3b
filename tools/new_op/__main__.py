"""Create the files of a new operation: `make new-op NAME=x`, or `python -m tools.new_op x [ROOT]`.

`template/` is an operation that returns its argument, with its files in every folder. They are copied under the new
name and formatted; existing files are never overwritten.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

TEMPLATE = Path(__file__).with_name("template")
ROOT = Path(__file__).resolve().parents[2]
NEXT = """
To do, in this order:
  1. the maths in openmythos/ops/{name}/reference.py, the call and its checks in openmythos/ops/{name}/__init__.py
  2. export {name} in openmythos/ops/__init__.py and openmythos/reference.py, list its sample call
     in openmythos/samples.py
  3. what has to hold in tests/ops/test_{name}.py
  4. a kernel, and its entry: csrc/{name} in openmythos/backends/cpp.py, triton_kernels/{name} in backends/triton.py;
     specimens in tests/aot/specimens/{name}.py; then `python -m tests.golden triton/{name} cpp/{name}`
  5. the counts in openmythos/ops/{name}/cost.py, the cases in bench/bench_{name}.py, a line in docs/architecture.md"""


def lay(name: str, root: Path) -> list[Path]:
    """Write the files of the operation `name` under a root, and return them.

    Raises:
        ValueError: when the name is not a snake_case identifier.
        FileExistsError: when one of the files already exists; then none is written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise ValueError(f"NAME={name!r}: must be snake_case, like rms_norm")
    camel = "".join(part.capitalize() for part in name.split("_"))
    texts = {}
    for source in sorted(path for path in TEMPLATE.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        target = root / source.relative_to(TEMPLATE).as_posix().replace("newop", name)
        if target.exists():
            raise FileExistsError(f"{target} exists already: choose another NAME")
        text = source.read_text(encoding="utf-8")
        texts[target] = text.replace("newop", name).replace("NewOp", camel).replace("NEWOP", name.upper())
    texts |= _with_kernel(name, camel, root / "csrc" / "core" / "cpu")
    for target, text in texts.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    _format(list(texts))
    return list(texts)


def _with_kernel(name: str, camel: str, folder: Path) -> dict[Path, str]:
    """The table of CPU kernels with the new kernel added, so that the tree builds."""
    signature = f"(const Threads&, const {camel}Args&);\n"
    insertions = {
        "kernels.h": [
            (r'(#include "\.\./\.\./\S+/args\.h"\n)(?!#include)', f'\\1#include "../../{name}/args.h"\n'),
            (r"(struct Kernels \{[^}]*)\}", f"\\1    void (*{name}){signature}}}"),
        ],
        "table.cpp": [
            (r"(Args&\);\n)(?!void)", f"\\1void {name}{signature}"),
            (r"(table = \{[^}]*)\}", f"\\1, {name}}}"),
        ],
    }
    texts = {}
    for file, patterns in insertions.items():
        if (folder / file).exists():
            text = (folder / file).read_text(encoding="utf-8")
            for pattern, replacement in patterns:
                text = re.sub(pattern, replacement, text, count=1)
            texts[folder / file] = text
    return texts


def _format(paths: list[Path]) -> None:
    """Reformat, since a name of another length moves line breaks and the order of imports."""
    beside = Path(sys.executable).parent

    def run(tool: str, *arguments: str, suffixes: tuple[str, ...]) -> None:
        program = shutil.which(tool, path=str(beside)) or shutil.which(tool)
        found = [str(path) for path in paths if path.suffix in suffixes]
        if program and found:
            subprocess.run([program, *arguments, *found], check=True, cwd=ROOT)

    config = str(ROOT / "pyproject.toml")
    run("ruff", "check", "-q", "--fix", "--select", "I", "--config", config, suffixes=(".py",))
    run("ruff", "format", "-q", "--config", config, suffixes=(".py",))
    for _ in range(2):  # a function that no longer fits one line needs a second pass
        run("clang-format", "-i", f"--style=file:{ROOT / '.clang-format'}", suffixes=(".cpp", ".h", ".cu"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.new_op", description=__doc__.splitlines()[0])
    parser.add_argument("name", help="snake_case")
    parser.add_argument("root", nargs="?", type=Path, default=ROOT)
    arguments = parser.parse_args()
    try:
        written = lay(arguments.name, arguments.root)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    for path in written:
        print(path.relative_to(arguments.root))
    print(NEXT.format(name=arguments.name))


if __name__ == "__main__":
    main()
