"""Builds the tools of this folder and code objects for tests in build/tools, and rebuilds them when sources change."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch

from tools import device_code, toolchain

ROOT = Path(__file__).resolve().parents[1]
DRIVER = Path(__file__).with_name("recording_driver")
CACHE = ROOT / "build" / "tools"
RUNTIME = sorted(path for path in (ROOT / "csrc" / "runtime").glob("*.cpp") if path.name != "stream.cpp")
HEADERS = sorted((ROOT / "csrc").rglob("*.h"))
GXX = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
WARNINGS = ("-Wall", "-Wextra", "-Werror")


def missing_gxx() -> str | None:
    """Why host code cannot be compiled here, or None."""
    return None if GXX else "no C++ compiler was found"


def compiler_for(arch: str) -> toolchain.Toolchain:
    """The toolchain that compiles for the architecture; MissingError when there is none here."""
    if not arch.startswith("gfx"):
        return toolchain.find_cuda(os.environ)
    return toolchain.find_rocm({"OPENMYTHOS_ROCM_VERSION": "0.0", **os.environ})


def missing_device_compiler(arch: str) -> str | None:
    """Why device code for the architecture cannot be compiled here, or None."""
    try:
        compiler_for(arch)
    except toolchain.MissingError as error:
        return str(error)
    return None


def cached(name: str, sources: list[Path], what: str, make: Callable[[Path], None]) -> Path:
    """The file `name`, built by make(path) and kept until a source or `what` changes."""
    digest = hashlib.sha256(what.encode())
    for path in sources:
        digest.update(path.read_bytes())
    folder = CACHE / digest.hexdigest()[:20]
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / name
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            partial = folder / f"{name}.partial"
            make(partial)
            partial.rename(made)
    return made


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def _compile(name: str, sources: list[Path], headers: list[Path], flags: tuple[str, ...]) -> Path:
    def make(path: Path) -> None:
        run([GXX, *flags, *WARNINGS, *map(str, sources), "-o", str(path), "-ldl", "-pthread"])

    return cached(name, [*sources, *headers], " ".join((GXX, *flags)), make)


def fake_driver(vendor: str, *definitions: str) -> Path:
    """The recording driver, under the file name of the vendor's driver."""
    name = "libcuda.so.1" if vendor == "cuda" else "libamdhip64.so.7"
    kind = "FAKE_CUDA" if vendor == "cuda" else "FAKE_HIP"
    flags = (
        "-x",
        "c",
        "-shared",
        "-fPIC",
        "-O1",
        "-fvisibility=hidden",
        f"-D{kind}",
        *(f"-D{d}" for d in definitions),
    )
    return _compile(name, [DRIVER / "driver.c"], [], flags)


def runtime_library() -> Path:
    """The launcher with a C interface."""
    flags = ("-std=c++20", "-shared", "-fPIC", "-O1")
    return _compile("libruntime.so", [DRIVER / "runtime_api.cpp", *RUNTIME], HEADERS, flags)


def sanitized_program(sanitizer: str) -> Path:
    """A program that stresses the launcher, built with a sanitizer."""
    flags = (
        "-std=c++20",
        "-O1",
        "-g",
        f"-fsanitize={sanitizer}",
        "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer",
    )
    return _compile("stress", [DRIVER / "stress.cpp", DRIVER / "runtime_api.cpp", *RUNTIME], HEADERS, flags)


def fake_ops() -> Path:
    """The GPU ops as `openmythos_fake` on CPU tensors."""
    folder = Path(torch.__file__).parent
    flags = (
        *("-std=c++20", "-shared", "-fPIC", "-O2", "-DTORCH_TARGET_VERSION=0x020b000000000000"),
        "-DOPENMYTHOS_RECORDING",
        *("-isystem", str(folder / "include"), f"-L{folder / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu"),
    )
    csrc = ROOT / "csrc"
    host = sorted({*csrc.glob("*/bind*.cpp"), *csrc.glob("*/*plan.cpp"), csrc / "core" / "run.cpp"})
    sources = [*host, DRIVER / "stream.cpp", *RUNTIME]
    return _compile("libopenmythos_fake.so", sources, HEADERS, flags)


def device_object(op: str, arch: str) -> tuple[Path, str]:
    """The code object of op.cu for the architecture, and the compiler's output."""
    tools = compiler_for(arch)
    source = device_code.sources()[op]
    name = f"{op}.{arch}.{device_code.suffix(arch)}"

    def make(path: Path) -> None:
        said = run(device_code.command(tools.compiler, source, arch, path))
        path.with_name("said.txt").write_text(said, encoding="utf-8")

    command = device_code.command(tools.compiler, Path(op), arch, Path("out"))
    made = cached(name, [source, *device_code.headers()], " ".join(command), make)
    return made, made.with_name("said.txt").read_text(encoding="utf-8")
