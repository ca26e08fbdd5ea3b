"""Fixtures: the GPU ops on CPU tensors with a fake ROCm driver, whose launches the emulator may run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from openmythos.backends import cpp, library
from tests.native.emulated import Emulated
from tools import building, recording_driver
from tools.recording_driver import FakeOps

ARCH = "gfx1151"


def missing() -> str | None:
    """Why the fixture is not available here, or None."""
    return building.missing_gxx() or building.missing_device_compiler(ARCH) or library.not_loaded()


@pytest.fixture(scope="session")
def fake_session(tmp_path_factory: pytest.TempPathFactory) -> FakeOps:
    """Loaded once per process, since an op library cannot be unloaded."""
    if missing() is not None:
        pytest.skip(missing())
    return recording_driver.load_ops(tmp_path_factory.mktemp("fake_ops"), ARCH)


@pytest.fixture
def fake_ops(fake_session: FakeOps, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOps]:
    """The C++ backend calls the fake ops for one test."""
    fake_session.driver.reset(devices=1)
    monkeypatch.setattr(cpp, "_native", recording_driver.serve(fake_session))
    yield fake_session
    fake_session.driver.reset(devices=1)


@pytest.fixture
def emulated(fake_ops: FakeOps) -> Emulated:
    """Runs the launches that the fake driver records; needs the emulator."""
    return Emulated(fake_ops)
