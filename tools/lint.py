"""The project's own rules, checked in a second: `python -m tools.lint [ROOT]` prints one sentence for each finding.

Rules that need no judgement: arguments are read by name, an operation's parameters stay within a few files, imports
point one way and close no circle, files are short, environment variables are documented, prose is plain.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

MAX_LINES = 400
MAX_DOC_WORDS = 8000
# a new parameter of the loop step's maths touches at most this many product files (CONTRIBUTING.md)
PARAMETER, MAX_PARAMETER_FILES = "halt_w", 8

PRODUCT = ("openmythos/", "triton_kernels/", "csrc/")
SOURCES = (".py", ".cpp", ".c", ".h", ".cu", ".hip")
# the first two name what they forbid, the third what has been renamed
EXEMPT = ("tools/lint.py", "tests/tools/test_lint.py", "CHANGELOG.md")

POSITIONAL = {"args", "rest", "arguments", "inputs", "params", "tensors", "operands", "outputs", "call"}

# each is matched as whole words, also within an identifier
WORDS = {
    ("nobody", "somebody", "everybody"): "say what does it, or that nothing does",
    ("numbers of",): 'write "the number of" or "elements"',
    ("so many",): "write the number",
    ("rooms", "the house", "the blueprint"): "write folders, the project, the design",
    ("is asked", "are asked", "asked is", "asked are", "who asks", "whoever asks"): "say which function is called",
    ("pristine",): "write unmodified",
    ("mla_shares", "number of shares", "share of the keys", "shares of the keys", "each share"): "write splits",
    ("slab", "slabs"): "write shared-memory tiles",
    ("paces",): "write stress",
    ("contender", "contenders"): "write baselines or implementations",
    ("mood", "moods"): "say what varies",
    ("takers",): "write expert tokens",
    ("carver",): "write scratch layout",
    ("soften",): "write softmax",
    ("in vain", "without further ado", "for want of", "that there are not"): "say it plainly",
}

COMMANDS = ("io", "demo", "cli", "doctor", "plan", "acceleration")
# What a folder must not import.
LAYERS = {
    "openmythos.ops": (
        "nn",
        "engine",
        "backends",
        "io",
        "demo",
        "cli",
        "doctor",
        "plan",
        "acceleration",
        "triton_kernels",
    ),
    "openmythos.dispatch": ("ops", "nn", "engine", "backends", "io", "demo", "cli", "doctor", "plan", "acceleration"),
    "openmythos.backends": ("nn", "engine", "io", "demo", "cli", "doctor", "plan", "acceleration"),
    "openmythos.triton_kernels": ("dispatch", "backends", "nn", "engine", "io", "demo", "cli", "doctor", "plan"),
    "openmythos.nn": ("engine", "backends", "io", "demo", "cli", "doctor", "plan", "acceleration", "triton_kernels"),
    "openmythos.engine": ("backends", "io", "demo", "cli", "doctor", "plan", "acceleration", "triton_kernels"),
    "openmythos.roofline": ("nn", "engine", "io", "demo", "cli", "doctor", "plan", "acceleration"),
    "openmythos.io": ("engine", "demo", "cli", "doctor", "plan"),
    "openmythos": (),
}
OUTSIDE = ("bench", "tests", "tools")


class Finding(NamedTuple):
    """One broken rule: where, and the sentence."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


class Import(NamedTuple):
    """One import statement outside of functions: the importing file and module, the line, the imported module."""

    path: str
    source: str
    line: int
    target: str


class Tree:
    """The text files of a checkout, read once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.texts = {
            path: (root / path).read_text(encoding="utf-8")
            for path in _paths(root)
            if (path.endswith((*SOURCES, ".md", ".txt", ".toml")) or path == "Makefile") and (root / path).is_file()
        }
        self.trees = {
            path: ast.parse(text, path)
            for path, text in self.texts.items()
            if path.endswith(".py") and path.startswith(PRODUCT)
        }

    def product(self) -> Iterator[tuple[str, str]]:
        """(path, text) of the product's sources."""
        return ((p, text) for p, text in self.texts.items() if p.startswith(PRODUCT) and p.endswith(SOURCES))


def _paths(root: Path) -> list[str]:
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard"]
        return sorted(set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()))
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def _line(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


def positional_splits(tree: Tree) -> Iterator[Finding]:
    """Arguments that are taken apart by their positions instead of by name."""
    advice = "splits arguments by position: read the call's fields by name"
    for path, module in tree.trees.items():
        for node in ast.walk(module):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in POSITIONAL:
                index = node.slice
                constant = (
                    isinstance(index, ast.Constant) and isinstance(index.value, int) and index.value not in (0, -1)
                )
                if constant or isinstance(index, ast.Slice):
                    yield Finding(path, node.lineno, f"`{ast.unparse(node)}` {advice}.")
            elif isinstance(node, ast.Compare):
                counted = re.match(r"len\((\w+)\) == (\d+)", ast.unparse(node))
                if counted and counted.group(1) in POSITIONAL and int(counted.group(2)) > 1:
                    yield Finding(path, node.lineno, f"`{ast.unparse(node)}` tells two calls apart by length.")
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
                names = node.targets[0].elts
                starred = [i for i, name in enumerate(names) if isinstance(name, ast.Starred)]
                fields = {id(n.value) for n in ast.walk(node.value) if isinstance(n, ast.Attribute)}
                plain = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name) and id(n) not in fields}
                if starred and (plain & POSITIONAL or len(names) - starred[0] > 2):
                    yield Finding(path, node.lineno, f"`{ast.unparse(node.targets[0])} = ...` {advice}.")


def parameter_spread(tree: Tree) -> Iterator[Finding]:
    """A parameter of the loop step that too many product files spell; backward kernels are not counted."""
    found = [path for path, text in tree.product() if PARAMETER in text and "backward" not in path]
    if len(found) > MAX_PARAMETER_FILES:
        path = found[-1]
        line = _line(tree.texts[path], tree.texts[path].index(PARAMETER))
        yield Finding(
            path,
            line,
            f"`{PARAMETER}` is spelt in {len(found)} product files, at most {MAX_PARAMETER_FILES} are allowed: "
            f"{', '.join(found)}.",
        )


def words(tree: Tree) -> Iterator[Finding]:
    """Words that a native reader stumbles over, each with what to write instead."""
    for path, text in tree.texts.items():
        if path in EXEMPT or path.startswith("bench/results/"):
            continue
        lower = text.lower()
        for group, advice in WORDS.items():
            for word in group:
                if word in lower:  # a plain search is far faster than the expression
                    for match in re.finditer(rf"(?<![a-z]){word}(?![a-z])", lower):
                        yield Finding(path, _line(text, match.start()), f'"{word}": {advice}.')


def _module(path: str) -> str:
    """The dotted name of a product file; triton_kernels is installed as openmythos.triton_kernels."""
    name = PurePosixPath(path).with_suffix("").as_posix().removesuffix("/__init__").replace("/", ".")
    return f"openmythos.{name}" if name.startswith("triton_kernels") else name


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Import statements outside of functions, those under `if TYPE_CHECKING` included."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for inner in ("body", "orelse", "handlers", "finalbody"):
                yield from _statements(getattr(node, inner, []))


def _imports(tree: Tree) -> Iterator[Import]:
    modules = {_module(path) for path in tree.trees}
    for path, parsed in tree.trees.items():
        source = _module(path)
        package = source if path.endswith("/__init__.py") else source.rpartition(".")[0]
        for node in _statements(parsed.body):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                parts = package.split(".")
                base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
                base = ".".join(part for part in (base, node.module) if part)
                targets = [name if (name := f"{base}.{alias.name}") in modules else base for alias in node.names]
            for target in dict.fromkeys(targets):
                yield Import(path, source, node.lineno, target)


def import_circles(tree: Tree) -> Iterator[Finding]:
    """Modules that import each other, directly or by way of others; imports inside functions do not count."""
    edges: dict[str, dict[str, Import]] = {}
    modules = {_module(path) for path in tree.trees}
    for one in _imports(tree):
        if one.target in modules and one.target != one.source:
            edges.setdefault(one.source, {}).setdefault(one.target, one)
    reported: set[str] = set()
    for start in sorted(edges):
        circle = None if start in reported else _circle(start, edges)
        if circle:
            reported.update(circle)
            first = edges[circle[0]][circle[1]]
            yield Finding(first.path, first.line, f"imports form a circle: {' -> '.join(circle)}.")


def _circle(start: str, edges: dict[str, dict[str, Import]]) -> list[str] | None:
    """The shortest way from a module back to itself."""
    ways, seen = [[start]], set()
    while ways:
        following = []
        for way in ways:
            for target in edges.get(way[-1], ()):
                if target == start:
                    return [*way, start]
                if target not in seen:
                    seen.add(target)
                    following.append([*way, target])
        ways = following
    return None


def upward_imports(tree: Tree) -> Iterator[Finding]:
    """Imports against the direction nn -> ops -> dispatch -> backends -> kernels; a reference imports torch only."""
    for one in _imports(tree):
        top = one.target.split(".")[0]
        if top in OUTSIDE:
            yield Finding(one.path, one.line, f"the product imports {top}/, which is not installed.")
        elif _is_reference(one.source):
            if top == "openmythos" and not _is_reference(one.target) and one.target != "openmythos.ops.precision":
                yield Finding(one.path, one.line, f"a reference imports torch only, not {one.target}.")
            elif top not in ("openmythos", "torch") and top not in sys.stdlib_module_names:
                yield Finding(one.path, one.line, f"a reference imports torch only, not {top}.")
        else:
            layer = next(name for name in LAYERS if one.source == name or one.source.startswith(f"{name}."))
            for above in LAYERS[layer]:
                if one.target == f"openmythos.{above}" or one.target.startswith(f"openmythos.{above}."):
                    yield Finding(one.path, one.line, f"{layer.removeprefix('openmythos.')} must not import {above}.")


def _is_reference(module: str) -> bool:
    return module.startswith("openmythos.") and "reference" in module.split(".")


def file_length(tree: Tree) -> Iterator[Finding]:
    """Files that outgrew one subject."""
    for path, text in tree.texts.items():
        lines = text.count("\n")
        if path.endswith(SOURCES) and lines > MAX_LINES:
            yield Finding(path, MAX_LINES, f"{lines} lines, at most {MAX_LINES} are allowed: split it by subject.")


def environment(tree: Tree) -> Iterator[Finding]:
    """Environment variables that are read and not documented."""
    documented = set(re.findall(r"`([A-Z][A-Z0-9_]+)", tree.texts.get("docs/configuration.md", "")))
    read = r"(?:getenv\(|environ(?:ment)?(?:\.get|\.pop)?[(\[])\s*"
    pattern = re.compile(rf'"(OPENMYTHOS_[A-Z_]+)"|{read}"([A-Z][A-Z0-9_]+)"')
    for path, text in tree.texts.items():
        if path in EXEMPT or path.startswith("tests/") or not path.endswith(SOURCES):
            continue
        for match in pattern.finditer(text):
            name = match.group(1) or match.group(2)
            if name not in documented:
                yield Finding(path, _line(text, match.start()), f"{name} is not described in docs/configuration.md.")


def _pages(tree: Tree) -> list[str]:
    return [path for path in tree.texts if re.fullmatch(r"docs/.*\.md|README\.md|CONTRIBUTING\.md", path)]


def doc_words(tree: Tree) -> Iterator[Finding]:
    """Documentation that has become too long to read."""
    pages = _pages(tree)
    count = sum(len(tree.texts[path].split()) for path in pages)
    if count >= MAX_DOC_WORDS:
        longest = max(pages, key=lambda path: len(tree.texts[path]))
        yield Finding(longest, 1, f"the documentation has {count} words, fewer than {MAX_DOC_WORDS} are allowed.")


def doc_paths(tree: Tree) -> Iterator[Finding]:
    """Files and links that the documentation names and that do not exist; `x` stands for any operation."""
    folders = "openmythos|triton_kernels|csrc|bench|tests|tools|docs"
    named = re.compile(rf"\]\((?!https?:|#)([^)#\s]+)|`((?:{folders})/[\w./]+\.\w+)`")
    for path in _pages(tree):
        folder = (tree.root / path).parent
        for match in named.finditer(tree.texts[path]):
            link, file = match.groups()
            found = (folder / link).exists() if link else (tree.root / file).exists()
            if not found and not (file and re.search(r"/x/|_x\.", file)):
                yield Finding(path, _line(tree.texts[path], match.start()), f"{link or file} does not exist.")


CHECKS: tuple[Callable[[Tree], Iterator[Finding]], ...] = (
    positional_splits,
    parameter_spread,
    words,
    import_circles,
    upward_imports,
    file_length,
    environment,
    doc_words,
    doc_paths,
)


def findings(root: Path) -> list[Finding]:
    """Everything that breaks a rule, sorted by file and line."""
    tree = Tree(root)
    return sorted({finding for check in CHECKS for finding in check(tree)})


def main() -> int:
    """Print the findings; the exit status says whether there are any."""
    found = findings(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1])
    for finding in found:
        print(finding)
    if found:
        print(f"{len(found)} findings", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
