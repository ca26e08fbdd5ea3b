"""Chooses the GPU compiler for the code objects, their architectures, and the version in the wheel's name.

The choice depends on installed software only, never on the hardware, so every machine builds the same wheel.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

CUDA_ARCHS = ("sm_80", "sm_90a", "sm_100", "sm_120", "compute_80")
ROCM_ARCHS = ("gfx1100", "gfx1151")
KINDS = ("auto", "cpu", "cuda", "rocm", "none")
OLDEST_CLANG = 18


class Toolchain(NamedTuple):
    """A GPU compiler and its targets; `tag` is the wheel's local version, "cu130" or "rocm7.2"."""

    vendor: str
    compiler: str
    version: str
    archs: tuple[str, ...]

    @property
    def tag(self) -> str:
        return f"cu{self.version.replace('.', '')}" if self.vendor == "cuda" else f"rocm{self.version}"


class MissingError(RuntimeError):
    """No compiler for the requested code; the message says what to do."""


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def _number(text: str, pattern: str) -> str | None:
    found = re.search(pattern, text)
    return found.group(1) if found else None


def cuda_archs(value: str | None) -> tuple[str, ...]:
    """Architectures from CMAKE_CUDA_ARCHITECTURES ("80;90a;120", "90-virtual"), by default every supported one.

    Code needs capability 8.0. A number alone is code; "-virtual" is PTX, which later GPUs can compile.
    """
    if not value:
        return CUDA_ARCHS
    archs = []
    for item in re.split(r"[;, ]+", value.strip("; ,")):
        found = re.fullmatch(r"(\d+)([af]?)(-real|-virtual)?", item)
        if not found:
            raise MissingError(f"CMAKE_CUDA_ARCHITECTURES has {item!r}; write numbers, as in 80;90a;120 or 90-virtual")
        number, suffix, kind = found.groups()
        if int(number) < 80:
            raise MissingError(f"CMAKE_CUDA_ARCHITECTURES has {item!r}; the kernels need capability 8.0 (80) or newer")
        archs.append(f"{'compute' if kind == '-virtual' else 'sm'}_{number}{suffix}")
    return tuple(archs)


def rocm_archs(value: str | None) -> tuple[str, ...]:
    """Architectures from PYTORCH_ROCM_ARCH ("gfx1151;gfx1100"), by default every supported one."""
    if not value:
        return ROCM_ARCHS
    archs = tuple(item.split(":")[0] for item in re.split(r"[;, ]+", value.strip("; ,")))
    for arch in archs:
        if not re.fullmatch(r"gfx1[12]\d\d", arch):
            raise MissingError(
                f"PYTORCH_ROCM_ARCH has {arch!r}; the kernels are for RDNA3 and newer (gfx11.., gfx12..), whose waves "
                "have 32 lanes"
            )
    return archs


def find_cuda(environment: Mapping[str, str]) -> Toolchain:
    """nvcc from CUDACXX, CUDA_HOME, PATH or /usr/local/cuda."""
    home = environment.get("CUDA_HOME") or environment.get("CUDA_PATH")
    candidates = [environment.get("CUDACXX"), home and f"{home}/bin/nvcc", "nvcc", "/usr/local/cuda/bin/nvcc"]
    compiler = next((path for name in candidates if name and (path := shutil.which(name))), None)
    if compiler is None:
        raise MissingError("nvcc was not found; install the CUDA toolkit, or set CUDA_HOME or CUDACXX")
    version = _number(_output(compiler, "--version"), r"release (\d+\.\d+)")
    if version is None:
        raise MissingError(f"{compiler} --version names no release; is it nvcc?")
    return Toolchain("cuda", compiler, version, cuda_archs(environment.get("CMAKE_CUDA_ARCHITECTURES")))


def _rocm_home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("ROCM_PATH") or environment.get("ROCM_HOME") or "/opt/rocm")


def _rocm_version(environment: Mapping[str, str], home: Path, torch_hip: str | None) -> str:
    given = environment.get("OPENMYTHOS_ROCM_VERSION")
    if given:
        if not re.fullmatch(r"\d+\.\d+", given):
            raise MissingError(f"OPENMYTHOS_ROCM_VERSION is {given!r}, expected two numbers such as 7.2")
        return given
    for file in (home / ".info" / "version", home / ".info" / "version-dev"):
        if file.is_file() and (version := _number(file.read_text(encoding="utf-8"), r"(\d+\.\d+)")):
            return version
    if torch_hip and (version := _number(torch_hip, r"(\d+\.\d+)")):
        return version
    raise MissingError("the ROCm version is not known here; give it in OPENMYTHOS_ROCM_VERSION, for example 7.2")


def find_rocm(environment: Mapping[str, str], torch_hip: str | None = None) -> Toolchain:
    """A clang for HIP from HIP_CLANG, ROCm's folder or PATH; ROCm itself is not needed."""
    home = _rocm_home(environment)
    names = ["amdclang++", *(f"clang++-{version}" for version in range(25, OLDEST_CLANG - 1, -1)), "clang++"]
    candidates = [environment.get("HIP_CLANG"), f"{home}/llvm/bin/clang++", f"{home}/lib/llvm/bin/clang++", *names]
    for name in candidates:
        path = shutil.which(name) if name else None
        if path and int(_number(_output(path, "--version"), r"clang version (\d+)") or 0) >= OLDEST_CLANG:
            return Toolchain(
                "rocm",
                path,
                _rocm_version(environment, home, torch_hip),
                rocm_archs(environment.get("PYTORCH_ROCM_ARCH")),
            )
    raise MissingError(
        f"no clang++ {OLDEST_CLANG} or newer was found; install ROCm, or clang and lld (apt install clang-19 lld-19), "
        "or set HIP_CLANG"
    )


def torch_build(folder: Path) -> tuple[str | None, str | None]:
    """(CUDA version, HIP version) that the installed torch was built for, read without importing it."""
    values: dict[str, object] = {}
    exec((folder / "version.py").read_text(encoding="utf-8"), values)
    return values.get("cuda"), values.get("hip")


def choose(kind: str, torch: Path | None, environment: Mapping[str, str] = os.environ) -> tuple[Toolchain | None, str]:
    """The toolchain for OPENMYTHOS_BUILD=kind, and a sentence that says why; None builds no GPU code.

    "auto" follows torch: GPU code for the vendor that it was built for, if that vendor's compiler is installed. On a
    ROCm machine pip's isolated builds have a torch for CUDA but no nvcc: that gives ROCm.

    Raises:
        MissingError: when "cuda" or "rocm" was requested and cannot be built.
    """
    cuda, hip = torch_build(torch) if torch else (None, None)
    if kind == "cuda":
        return find_cuda(environment), "OPENMYTHOS_BUILD asks for CUDA"
    if kind == "rocm":
        return find_rocm(environment, hip), "OPENMYTHOS_BUILD asks for ROCm"
    if kind != "auto":
        return None, f"OPENMYTHOS_BUILD is {kind!r}"
    missing = []
    if cuda and not hip:
        try:
            return find_cuda(environment), f"torch is built for CUDA {cuda}"
        except MissingError as error:
            missing.append(str(error))
    if hip or (cuda and (_rocm_home(environment) / "bin").is_dir()):
        try:
            return find_rocm(environment, hip), f"torch is built for ROCm {hip}" if hip else "ROCm is installed"
        except MissingError as error:
            missing.append(str(error))
    return None, "; ".join(missing) or "torch is built for the CPU (set OPENMYTHOS_BUILD to cuda or rocm to have it)"
