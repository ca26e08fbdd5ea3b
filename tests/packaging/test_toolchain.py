"""The compiler, architectures and wheel name chosen on every kind of (simulated) machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import toolchain

NVCC = "#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n"
CLANG = "#!/bin/sh\necho 'Debian clang version {version}.1.7'\n"


def _program(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def _torch(folder: Path, cuda: str | None = None, hip: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "version.py").write_text(f"cuda = {cuda!r}\nhip = {hip!r}\n", encoding="utf-8")
    return folder


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """A machine without a GPU compiler on PATH, and an empty folder for ROCm."""
    monkeypatch.setenv("PATH", str(tmp_path / "no programs"))
    which = toolchain.shutil.which
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None if "/usr/local" in name else which(name))
    return {"ROCM_PATH": str(tmp_path / "rocm")}


def test_cuda_is_named_after_nvcc(nothing: dict[str, str], tmp_path: Path) -> None:
    environment = {**nothing, "CUDA_HOME": str(tmp_path)}
    compiler = _program(tmp_path / "bin" / "nvcc", NVCC)
    found, why = toolchain.choose("cuda", None, environment)
    assert found == toolchain.Toolchain("cuda", compiler, "13.0", toolchain.CUDA_ARCHS)
    assert found.tag == "cu130"
    assert "asks for CUDA" in why


@pytest.mark.parametrize("place", ["llvm/bin/clang++", "lib/llvm/bin/clang++"])
def test_rocm_is_named_after_its_folder(nothing: dict[str, str], tmp_path: Path, place: str) -> None:
    _program(tmp_path / "rocm" / place, CLANG.format(version=20))
    (tmp_path / "rocm" / ".info").mkdir()
    (tmp_path / "rocm" / ".info" / "version").write_text("10.1.0-38\n")
    found, _ = toolchain.choose("rocm", None, nothing)
    assert (found.version, found.tag, found.archs) == ("10.1", "rocm10.1", toolchain.ROCM_ARCHS)


def test_rocm_without_rocm_has_the_given_name(nothing: dict[str, str], tmp_path: Path) -> None:
    environment = {**nothing, "HIP_CLANG": _program(tmp_path / "clang++-19", CLANG.format(version=19))}
    with pytest.raises(toolchain.MissingError, match="give it in OPENMYTHOS_ROCM_VERSION"):
        toolchain.choose("rocm", None, environment)
    found, _ = toolchain.choose("rocm", None, {**environment, "OPENMYTHOS_ROCM_VERSION": "7.2"})
    assert found.tag == "rocm7.2"
    with pytest.raises(toolchain.MissingError, match="expected two numbers"):
        toolchain.choose("rocm", None, {**environment, "OPENMYTHOS_ROCM_VERSION": "seven"})
    found, _ = toolchain.choose("rocm", _torch(tmp_path / "torch", hip="7.1.52802"), environment)
    assert found.tag == "rocm7.1"


def test_an_old_clang_does_not_count(nothing: dict[str, str], tmp_path: Path) -> None:
    environment = {**nothing, "HIP_CLANG": _program(tmp_path / "clang++", CLANG.format(version=14))}
    with pytest.raises(toolchain.MissingError, match=r"no clang\+\+ 18 or newer was found"):
        toolchain.choose("rocm", None, environment)


def test_auto_follows_torch(nothing: dict[str, str], tmp_path: Path) -> None:
    environment = {**nothing, "CUDA_HOME": str(tmp_path), "OPENMYTHOS_ROCM_VERSION": "7.2"}
    cuda, rocm = _torch(tmp_path / "cuda", cuda="13.0"), _torch(tmp_path / "hip", hip="7.2")
    cpu = _torch(tmp_path / "cpu")
    assert toolchain.choose("auto", cuda, environment)[0] is None
    assert "nvcc was not found" in toolchain.choose("auto", cuda, environment)[1]
    assert "no clang++" in toolchain.choose("auto", rocm, environment)[1]
    _program(tmp_path / "rocm" / "llvm" / "bin" / "clang++", CLANG.format(version=22))
    (tmp_path / "rocm" / "bin").mkdir()
    # PyPI's torch in an isolated build, on a machine with ROCm
    assert toolchain.choose("auto", cuda, environment)[0].vendor == "rocm"
    assert toolchain.choose("auto", rocm, environment)[0].vendor == "rocm"
    _program(tmp_path / "bin" / "nvcc", NVCC)
    assert toolchain.choose("auto", cuda, environment)[0].vendor == "cuda"
    assert toolchain.choose("auto", rocm, environment)[0].vendor == "rocm"
    assert toolchain.choose("auto", cpu, environment) == (
        None,
        "torch is built for the CPU (set OPENMYTHOS_BUILD to cuda or rocm to have it)",
    )


@pytest.mark.parametrize("kind", ["cuda", "rocm"])
def test_what_was_asked_for_and_is_missing_raises(nothing: dict[str, str], kind: str) -> None:
    with pytest.raises(toolchain.MissingError, match=r"was not found|was found"):
        toolchain.choose(kind, None, nothing)


@pytest.mark.parametrize("kind", ["cpu", "none"])
def test_no_gpu_code(nothing: dict[str, str], kind: str) -> None:
    assert toolchain.choose(kind, None, nothing) == (None, f"OPENMYTHOS_BUILD is {kind!r}")


def test_architectures() -> None:
    assert toolchain.cuda_archs("80;90a-real 120, 90-virtual") == ("sm_80", "sm_90a", "sm_120", "compute_90")
    assert toolchain.rocm_archs("gfx1151;gfx1201:xnack-") == ("gfx1151", "gfx1201")
    assert toolchain.cuda_archs("") == toolchain.CUDA_ARCHS
    assert toolchain.rocm_archs(None) == toolchain.ROCM_ARCHS
    for text in ("75", "native", "sm_90"):
        with pytest.raises(toolchain.MissingError, match=f"CMAKE_CUDA_ARCHITECTURES has '{text}'"):
            toolchain.cuda_archs(text)
    for text in ("gfx942", "gfx90a", "native"):
        with pytest.raises(toolchain.MissingError, match=f"PYTORCH_ROCM_ARCH has '{text}'"):
            toolchain.rocm_archs(text)
