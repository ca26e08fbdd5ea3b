"""The GPU ops on CPU tensors, before a fake driver of ROCm whose launches somebody else may run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch

from openmythos.backends import calls, library
from tests.native import building
from tests.native.emulated import Emulated
from tests.native.fake import Driver, FakeOps
from tools import code_objects, device_code

ARCH = "gfx1151"
OPS = ("loop_step", "mla_attention", "moe", "moe_experts", "moe_route", "rms_norm")


def missing() -> str | None:
    """Why the fixture cannot be had here, or None."""
    return building.missing_gxx() or building.missing_device_compiler(ARCH) or library.not_loaded()


@pytest.fixture(scope="session")
def fake_session(tmp_path_factory: pytest.TempPathFactory) -> FakeOps:
    """Loaded once a process: an op library cannot be unloaded."""
    if missing() is not None:
        pytest.skip(missing())
    folder = tmp_path_factory.mktemp("fake_ops")
    (folder / "gpu").mkdir()
    for op in device_code.ops():
        shutil.copy(building.device_object(op, ARCH)[0], folder / "gpu")
    code_objects.write_manifest(folder / "gpu", "rocm", "0.0")
    driver = Driver("rocm")
    driver.reset(devices=1)
    torch.ops.load_library(shutil.copy(building.fake_ops(), folder))
    fragment = torch.library.Library("openmythos_fake", "FRAGMENT")
    for op in OPS:
        schema = getattr(torch.ops.openmythos_native, op).default._schema
        fragment.define(str(schema).removeprefix("openmythos_native::"))
    # kept for as long as the process lives
    torch.ops.openmythos_fake._fragment = fragment
    return FakeOps(torch.ops.openmythos_fake, driver, folder / "gpu")


@pytest.fixture
def fake_ops(fake_session: FakeOps, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOps]:
    """`backends.calls` goes to the fake ops for one test."""
    fake_session.driver.reset(devices=1)
    monkeypatch.setattr(calls, "native", fake_session.ops)
    yield fake_session
    fake_session.driver.reset(devices=1)


@pytest.fixture
def emulated(fake_ops: FakeOps) -> Emulated:
    """Runs what the fake driver is asked to launch; needs the emulator."""
    return Emulated(fake_ops)
