"""Drives CMake and Ninja for the native libraries; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from tools import toolchain  # noqa: E402

VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "openmythos" / "__init__.py").read_text(encoding="utf-8")).group(
    1
)


def build_kind() -> str:
    kind = os.environ.get("OPENMYTHOS_BUILD") or "auto"
    if kind not in toolchain.KINDS:
        sys.exit(f"OPENMYTHOS_BUILD is {kind!r}, expected one of {', '.join(toolchain.KINDS)}.")
    return kind


def find_tool(name: str) -> str | None:
    # Also finds tools installed beside the running Python when its folder is not on PATH.
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def why_not() -> str | None:
    """The reason why nothing can be compiled here, or None."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not sys.platform.startswith("linux"):
        return f"the CPU kernels are for Linux on x86-64, and this is {sys.platform} on {platform.machine()}"
    if not any(find_tool(compiler) for compiler in [os.environ.get("CXX"), "c++", "g++", "clang++"] if compiler):
        return "no C++ compiler was found"
    for tool in ("cmake", "ninja"):
        if not find_tool(tool):
            return f"{tool} was not found"
    for package in ("torch", "pybind11"):
        if not package_folder(package):
            return f"{package} is not installed in the build environment (use --no-build-isolation)"
    return None


def gpu_options() -> list[str]:
    if gpu is None:
        return ["-DOPENMYTHOS_GPU=none"]
    return [
        f"-DOPENMYTHOS_GPU={gpu.vendor}",
        f"-DOPENMYTHOS_GPU_COMPILER={gpu.compiler}",
        f"-DOPENMYTHOS_GPU_ARCHS={';'.join(gpu.archs)}",
        f"-DOPENMYTHOS_GPU_TOOLKIT={gpu.version}",
    ]


class CMakeBuild(build_ext):
    """Builds every target at once: in the source tree for editable installs, in build_lib for wheels."""

    def output_folder(self) -> Path:
        editable = self.inplace or getattr(self, "editable_mode", False)
        return (ROOT if editable else Path(self.build_lib).resolve()) / "openmythos"

    def run(self) -> None:
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        # Remove code objects of another vendor or of an earlier list of architectures.
        shutil.rmtree(self.output_folder() / "_lib" / "gpu", ignore_errors=True)
        pybind11 = package_folder("pybind11")
        subprocess.run(
            [
                find_tool("cmake"),
                "-S",
                str(ROOT),
                "-B",
                str(build),
                "-G",
                "Ninja",
                f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11 / 'share' / 'cmake' / 'pybind11'}",
                f"-DOPENMYTHOS_TORCH={package_folder('torch')}",
                f"-DOPENMYTHOS_OUTPUT={self.output_folder()}",
                f"-DOPENMYTHOS_VERSION={self.distribution.get_version()}",
                *gpu_options(),
            ],
            check=True,
        )
        subprocess.run([find_tool("cmake"), "--build", str(build)], check=True)

    def get_outputs(self) -> list[str]:
        folder = self.output_folder()
        return [
            str(path) for path in [*folder.glob("_native*.so"), *folder.glob("_lib/*.so"), *folder.glob("_lib/gpu/*")]
        ]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


kind = build_kind()
reason = "OPENMYTHOS_BUILD is 'none'" if kind == "none" else why_not()
gpu, why = None, reason
if reason is None:
    try:
        gpu, why = toolchain.choose(kind, package_folder("torch"))
    except toolchain.MissingError as error:
        sys.exit(f"openmythos: OPENMYTHOS_BUILD is {kind!r}, but {error}.")
elif kind in ("cuda", "rocm"):
    sys.exit(f"openmythos: OPENMYTHOS_BUILD is {kind!r}, but {reason}.")

options: dict[str, object] = {"version": f"{VERSION}+{gpu.tag}" if gpu else VERSION}
if reason is None:
    options["ext_modules"] = [Extension("openmythos._native", sources=[])]
    options["cmdclass"] = {"build_ext": CMakeBuild}
    archs = f"{gpu.vendor} {gpu.version} with {gpu.compiler} for {', '.join(gpu.archs)}" if gpu else "none"
    print(f"openmythos: GPU code: {archs}, because {why}.", file=sys.stderr)
else:
    print(f"openmythos: native kernels are left out, because {reason}.", file=sys.stderr)
# The top-level folder is imported as openmythos.triton_kernels: the bare name belongs to another package.
kernels = "openmythos.triton_kernels"
options["packages"] = [*find_packages(include=["openmythos", "openmythos.*"], exclude=[f"{kernels}*"]), kernels]
options["packages"] += [f"{kernels}.{name}" for name in find_packages("triton_kernels")]
options["package_dir"] = {kernels: "triton_kernels"}
options["package_data"] = {f"{kernels}.configs": ["*.json"], "openmythos.roofline": ["*.json"]}

setup(**options)
