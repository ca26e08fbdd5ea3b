"""The launcher with a recording driver: arguments, order, every failure, damaged files, threads."""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import building
from tools.recording_driver import FIRST_LAUNCH, LAUNCH, Driver, Runtime, invented_objects

pytestmark = pytest.mark.skipif(building.missing_gxx() is not None, reason=f"{building.missing_gxx()}")
VENDORS = pytest.mark.parametrize("vendor", ["cuda", "rocm"])
KERNELS = ["openmythos_first", "openmythos_second"]


@pytest.fixture
def driver(vendor: str) -> Driver:
    return Driver(vendor)


@pytest.fixture
def runtime(vendor: str, driver: Driver, tmp_path: Path) -> Iterator[Runtime]:
    opened = Runtime(invented_objects(tmp_path / "gpu", vendor))
    yield opened
    opened.close()


@VENDORS
def test_a_launch_arrives_as_it_was_made(driver: Driver, runtime: Runtime) -> None:
    seen = []

    def run(kernel, grid, threads, shared, stream, params):
        seen.append((kernel, grid, threads, shared, stream, ctypes.string_at(params, 10)))

    with driver.running(run):
        assert runtime.launch("openmythos_second", grid=7, threads=96, shared=512, stream=0x1234) == ""
    assert seen == [("openmythos_second", (7, 1, 1), 96, 512, 0x1234, b"parameters")]


@VENDORS
def test_modules_and_functions_are_loaded_once_a_device(driver: Driver, runtime: Runtime) -> None:
    for device in (0, 1, 0, 1):
        for kernel in KERNELS:
            assert runtime.launch(kernel, device=device) == ""
    loads = driver.calls("cuModuleLoadData" if driver.vendor == "cuda" else "hipModuleLoadData")
    assert [line[-1] for line in loads] == ["0", "1"]
    assert len(driver.calls("cuModuleGetFunction") + driver.calls("hipModuleGetFunction")) == 4
    assert [line[-1] for line in driver.calls(LAUNCH[driver.vendor])] == list("00110011")


@VENDORS
def test_the_current_device_comes_back(driver: Driver, runtime: Runtime) -> None:
    assert runtime.launch(device=1) == ""
    if driver.vendor == "cuda":
        assert len(driver.calls("cuCtxPushCurrent")) == len(driver.calls("cuCtxPopCurrent")) > 0
    else:
        assert [line[-1] for line in driver.calls("hipSetDevice")][-1] == "0"


@VENDORS
def test_loading_is_allowed_while_a_stream_is_captured(driver: Driver, runtime: Runtime) -> None:
    assert runtime.launch(shared=100_000) == ""
    relaxed, modes, loading = "0", [], ("ModuleLoadData", "ModuleGetFunction", "FuncSetAttribute")
    for line in driver.calls():
        if "ThreadExchangeStreamCaptureMode" in line:
            relaxed = line[-1]
            modes.append(relaxed)
        elif line.split()[0].endswith((*loading, "LaunchKernel")):
            assert relaxed == ("2" if line.split()[0].endswith(loading) else "0"), line
    assert modes == ["2", "0"] * (3 if driver.vendor == "cuda" else 2), "relaxed, then as before"
    assert runtime.launch(shared=100_000) == ""
    assert len([line for line in driver.calls() if "Exchange" in line]) == len(modes), "a second one only launches"


@pytest.mark.parametrize("vendor", ["cuda"])
def test_more_shared_memory_is_asked_for_once(driver: Driver, runtime: Runtime) -> None:
    for shared in (1000, 48 * 1024, 100_000, 60_000, 100_000, 100_001):
        assert runtime.launch(shared=shared) == ""
    assert [line.split()[-1] for line in driver.calls("cuFuncSetAttribute")] == ["100000", "100001"]


FAILURES = [(vendor, call) for vendor, calls in FIRST_LAUNCH.items() for call in calls]


@pytest.mark.parametrize(("vendor", "call"), FAILURES, ids=[call for _, call in FAILURES])
def test_every_call_may_fail(vendor: str, call: str, tmp_path: Path) -> None:
    driver = Driver(vendor)
    driver.fail(call, code=35)
    runtime = Runtime(invented_objects(tmp_path / "gpu", vendor))
    error = runtime.launch(shared=65536, device=1)
    shown = call.replace("Properties", "PropertiesR0600") if call == "hipGetDeviceProperties" else call
    assert f"{shown} failed: " in error
    assert "invented for a test" in error
    for part in ("openmythos_first", "grid (3, 1, 1) of 64 threads", "65536 bytes", "cuda:1"):
        assert part in error
    assert error.endswith(".")
    if vendor == "rocm" and call != "hipInit":
        assert driver.calls("hipGetLastError"), "torch must not find this error later"
    driver.reset()
    # The failure is not permanent, except that the driver itself is opened only once.
    again = runtime.launch(shared=65536, device=1)
    opened_once = call in ("cuInit", "cuDeviceGetCount", "hipInit", "hipGetDeviceCount")
    assert (again == "") != opened_once
    runtime.close()


@VENDORS
def test_an_error_without_a_name_is_its_number(driver: Driver, runtime: Runtime) -> None:
    driver.fail(LAUNCH[driver.vendor], code=999)
    assert "failed: 999." in runtime.launch()


@VENDORS
def test_a_driver_without_a_function_says_which(vendor: str, tmp_path: Path) -> None:
    folder = invented_objects(tmp_path / "gpu", vendor)
    code = (
        "import sys; from tools.recording_driver import Driver, Runtime; from pathlib import Path;"
        f"Driver({vendor!r}, 'FAKE_WITHOUT_FUNCTION'); print(Runtime(Path(sys.argv[1])).why_not())"
    )
    text = _python(code, folder)
    name = "cuModuleGetFunction" if vendor == "cuda" else "hipModuleGetFunction"
    assert f"has no function {name}; it is too old, or not a GPU driver" in text


@VENDORS
def test_no_driver_is_a_sentence(vendor: str, tmp_path: Path) -> None:
    folder = invented_objects(tmp_path / "gpu", vendor)
    code = "import sys; from tools.recording_driver import Runtime; from pathlib import Path;"
    text = _python(code + "r = Runtime(Path(sys.argv[1])); print(r.why_not()); print(r.launch())", folder)
    assert text.startswith("no GPU driver was found (")
    assert "could not launch openmythos_first" in text


def _python(code: str, *arguments: Path) -> str:
    import sys

    environment = {**os.environ, "PYTHONPATH": str(building.ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@VENDORS
def test_a_changed_code_object_is_not_loaded(vendor: str, driver: Driver, runtime: Runtime, tmp_path: Path) -> None:
    arch = "sm_90a" if vendor == "cuda" else "gfx1151"
    path = tmp_path / "gpu" / f"op.{arch}.bin"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    assert "differs from the manifest (sha256); reinstall openmythos" in runtime.launch()
    path.write_bytes(bytes(data[:-1]))
    assert "differs from the manifest (sha256)" in runtime.launch()
    path.unlink()
    assert "is missing; reinstall openmythos" in runtime.launch()
    assert not [line for line in driver.calls() if "ModuleLoad" in line]


@VENDORS
def test_an_object_that_the_driver_refuses(vendor: str, driver: Driver, runtime: Runtime) -> None:
    driver.fail("cuModuleLoadData" if vendor == "cuda" else "hipModuleLoadData", code=209)
    error = runtime.launch()
    assert "does not load" in error
    assert f"built with {vendor} 13.0, and this machine has a driver for " in error
    assert ("CUDA 13.0" if vendor == "cuda" else "ROCm 7.2") in error


@pytest.mark.parametrize(
    ("vendor", "arch", "loaded"),
    [
        ("cuda", "sm_80", "sm_80"),
        ("cuda", "sm_89", "sm_80"),
        ("cuda", "sm_90", "sm_90a"),
        ("cuda", "sm_103", "sm_100"),
        ("cuda", "sm_110", "compute_80"),
        ("cuda", "sm_75", None),
        ("rocm", "gfx1151", "gfx1151"),
        ("rocm", "gfx1150", None),
        ("rocm", "gfx942", None),
    ],
)
def test_the_right_object_for_the_device(vendor: str, arch: str, loaded: str | None, tmp_path: Path) -> None:
    archs = ("sm_80", "sm_90a", "sm_100", "compute_80") if vendor == "cuda" else ("gfx1100", "gfx1151")
    driver = Driver(vendor)
    driver.reset(arch=arch)
    runtime = Runtime(invented_objects(tmp_path / "gpu", vendor, archs))
    for other in archs:
        if other != loaded:
            (tmp_path / "gpu" / f"op.{other}.bin").unlink()
    if loaded is None:
        assert runtime.why_not() == (
            f"this build has GPU code for {', '.join(archs)}, and cuda:0 is {arch}; build from source on that machine"
        )
        assert f"this build has no code object of op for {arch}" in runtime.launch()
    else:
        assert runtime.why_not() == ""
        assert runtime.launch() == ""
    runtime.close()


@VENDORS
def test_a_device_that_is_not_there(driver: Driver, runtime: Runtime) -> None:
    for device in (2, -1, 10**6):
        assert runtime.why_not(device) == f"cuda:{device} does not exist: the driver shows 2 devices"
        assert "the driver shows 2 devices" in runtime.launch(device=device)


def test_no_code_objects(tmp_path: Path) -> None:
    runtime = Runtime(tmp_path)
    assert runtime.why_not() == f"this build has no GPU code (there is no {tmp_path}/manifest.txt)"
    assert runtime.describe() == runtime.why_not()
    runtime.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "openmythos code objects 2\nvendor cuda\n",
        "openmythos code objects 1\n",
        "openmythos code objects 1\nvendor intel\n",
        "openmythos code objects 1\nvendor cuda\nobject op sm_90\n",
        "openmythos code objects 1\nvendor cuda\nobject op sm_90 f -x 0\n",
        "openmythos code objects 1\nvendor cuda\nobject op sm_90 ../f 1 " + "0" * 64 + "\n",
        "openmythos code objects 1\nvendor cuda\nsomething else\n",
    ],
)
def test_a_damaged_manifest(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.txt").write_text(text)
    runtime = Runtime(tmp_path)
    assert "manifest.txt is damaged at '" in runtime.why_not()
    runtime.close()


@VENDORS
def test_threads_share_the_launcher(driver: Driver, runtime: Runtime) -> None:
    assert runtime.launch_threads(KERNELS, threads=4, rounds=40) == 0
    launches = driver.calls(LAUNCH[driver.vendor])
    assert len(launches) == 160
    for line in launches:
        # Every thread launched on its own device.
        assert line.split(" device ")[1] in ("0", "1")
    assert len([line for line in driver.calls() if "ModuleLoadData" in line]) == 2


def test_sha256_is_the_standard_one(tmp_path: Path) -> None:
    runtime, source = Runtime(tmp_path), random.Random(0)
    for size in (0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 128, 1000, 100_003):
        data = source.randbytes(size)
        assert runtime.sha256(data) == hashlib.sha256(data).hexdigest(), size
    runtime.close()


@pytest.mark.slow
@VENDORS
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_under_sanitizers(vendor: str, sanitizer: str, tmp_path: Path) -> None:
    program = building.sanitized_program(sanitizer)
    good = invented_objects(tmp_path / "good", vendor)
    wrong = invented_objects(tmp_path / "wrong", vendor)
    next(wrong.glob("*.bin")).write_bytes(b"")
    (tmp_path / "cut").mkdir()
    manifest = (good / "manifest.txt").read_bytes()
    (tmp_path / "cut" / "manifest.txt").write_bytes(manifest[: len(manifest) // 2])
    libraries = building.fake_driver(vendor).parent
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    folders = [good, wrong, tmp_path / "cut", tmp_path / "absent"]
    done = subprocess.run(
        [program, *folders], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "runtime error" not in done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(folders)
    assert lines[0].endswith("|0")
    assert all(line.endswith("|200") for line in lines[2:])
