"""Python interface to the recording driver."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tools import building, code_objects, device_code

CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p, *[ctypes.c_uint] * 5, ctypes.c_void_p, ctypes.c_void_p)
LAUNCH = {"cuda": "cuLaunchKernel", "rocm": "hipModuleLaunchKernel"}
# The driver calls of a first launch in order, under the fake driver's names.
FIRST_LAUNCH = {
    "cuda": (
        *("cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain"),
        *("cuCtxGetCurrent", "cuCtxPushCurrent", "cuThreadExchangeStreamCaptureMode", "cuModuleLoadData"),
        *("cuModuleGetFunction", "cuFuncSetAttribute", "cuLaunchKernel"),
    ),
    "rocm": (
        *("hipInit", "hipGetDeviceCount", "hipGetDeviceProperties", "hipGetDevice", "hipSetDevice"),
        *("hipThreadExchangeStreamCaptureMode", "hipModuleLoadData", "hipModuleGetFunction", "hipModuleLaunchKernel"),
    ),
}
ARCH = {"cuda": "sm_90", "rocm": "gfx1151"}


class Driver:
    """A fake driver loaded into this process, where the launcher finds it like one that torch has loaded."""

    def __init__(self, vendor: str, *definitions: str) -> None:
        self.vendor = vendor
        self._library = ctypes.CDLL(str(building.fake_driver(vendor, *definitions)), mode=ctypes.RTLD_LOCAL)
        self._library.fake_calls.restype = ctypes.c_char_p
        self.reset()

    def reset(self, devices: int = 2, arch: str | None = None, multiprocessors: int = 4) -> None:
        """Forget calls, failures and callbacks."""
        self._library.fake_reset()
        self._library.fake_devices(devices, (arch or ARCH[self.vendor]).encode(), multiprocessors)

    def fail(self, call: str, code: int = 1, after: int = 0) -> None:
        """Let a call fail with this code after `after` successes."""
        self._library.fake_fail(call.encode(), code, after)

    def calls(self, name: str = "") -> list[str]:
        """The recorded calls, only those of one name if given."""
        lines = self._library.fake_calls().decode().splitlines()
        return [line for line in lines if line.startswith(name)]

    @contextmanager
    def running(self, run: Callable):
        """Pass each launch to run(kernel, grid, threads, shared, stream, address of the params)."""
        errors: list[BaseException] = []

        def callback(kernel, x, y, z, threads, shared, stream, params):
            try:
                run(kernel.decode(), (x, y, z), threads, shared, stream, params)
            except BaseException as error:
                errors.append(error)

        kept = CALLBACK(callback)
        self._library.fake_on_launch(kept)
        try:
            yield
        finally:
            self._library.fake_on_launch(ctypes.cast(None, CALLBACK))
        if errors:
            raise errors[0]


def serve(fake: FakeOps) -> Callable[[str], Callable[..., Any]]:
    """The replacement for `openmythos.backends.cpp._native` that makes the backend call the fake ops."""
    return lambda name: getattr(fake.ops, name).default


class FakeOps(NamedTuple):
    """`ops` is torch.ops.openmythos_fake; `folder` holds the code objects that it launches."""

    ops: Any
    driver: Driver
    folder: Path


def load_ops(folder: Path, arch: str, *definitions: str) -> FakeOps:
    """The GPU ops as `torch.ops.openmythos_fake` on CPU tensors, with a fake ROCm driver; only once per process."""
    (folder / "gpu").mkdir()
    for op in device_code.ops():
        shutil.copy(building.device_object(op, arch)[0], folder / "gpu")
    code_objects.write_manifest(folder / "gpu", "rocm", "0.0")
    driver = Driver("rocm", *definitions)
    driver.reset(devices=1)
    torch.ops.load_library(shutil.copy(building.fake_ops(), folder))
    return FakeOps(torch.ops.openmythos_fake, driver, folder / "gpu")


class Runtime:
    """The launcher on one folder of code objects."""

    def __init__(self, folder: Path) -> None:
        self._library = library = ctypes.CDLL(str(building.runtime_library()))
        for name in ("open", "why_not", "describe", "launch", "sha256"):
            getattr(library, f"runtime_{name}").restype = ctypes.c_void_p
        for name in ("close", "why_not", "describe", "launch", "launch_threads"):
            getattr(library, f"runtime_{name}").argtypes = [ctypes.c_void_p, *self._arguments(name)]
        self._handle = library.runtime_open(str(folder).encode())

    @staticmethod
    def _arguments(name: str) -> list:
        text, unsigned = ctypes.c_char_p, ctypes.c_uint
        device, address = ctypes.c_int, ctypes.c_void_p
        if name == "launch":
            return [text, text, unsigned, unsigned, unsigned, device, address, address]
        if name == "launch_threads":
            return [text, ctypes.POINTER(text), ctypes.c_int, ctypes.c_int, ctypes.c_int]
        return [device] if name == "why_not" else []

    def _text(self, address: int) -> str:
        text = ctypes.string_at(address).decode()
        self._library.runtime_free(ctypes.c_void_p(address))
        return text

    def why_not(self, device: int = 0) -> str:
        return self._text(self._library.runtime_why_not(self._handle, device))

    def describe(self) -> str:
        return self._text(self._library.runtime_describe(self._handle))

    def sha256(self, data: bytes) -> str:
        return self._text(self._library.runtime_sha256(data, ctypes.c_size_t(len(data))))

    def launch(
        self,
        kernel: str = "openmythos_first",
        *,
        op: str = "op",
        grid: int = 3,
        threads: int = 64,
        shared: int = 0,
        device: int = 0,
        stream: int = 0x77,
        params: bytes = b"parameters",
    ) -> str:
        """The error, or ""."""
        buffer = ctypes.create_string_buffer(params)
        arguments = (op.encode(), kernel.encode(), grid, threads, shared, device, stream, ctypes.addressof(buffer))
        return self._text(self._library.runtime_launch(self._handle, *arguments))

    def launch_threads(self, kernels: list[str], threads: int, rounds: int) -> int:
        """The number of failed launches."""
        names = (ctypes.c_char_p * len(kernels))(*(name.encode() for name in kernels))
        return self._library.runtime_launch_threads(self._handle, b"op", names, len(kernels), threads, rounds)

    def close(self) -> None:
        self._library.runtime_close(self._handle)


def invented_objects(folder: Path, vendor: str, archs: tuple[str, ...] | None = None) -> Path:
    """Files that only the fake driver can load, with a valid manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [code_objects.FORMAT, f"vendor {vendor}", "toolkit 13.0"]
    for arch in archs or (("sm_80", "sm_90a") if vendor == "cuda" else ("gfx1100", "gfx1151")):
        data = f"an invented code object for {arch}".encode()
        (folder / f"op.{arch}.bin").write_bytes(data)
        lines.append(f"object op {arch} op.{arch}.bin {len(data)} {hashlib.sha256(data).hexdigest()}")
        lines.append("kernel op openmythos_first")
    (folder / "manifest.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
