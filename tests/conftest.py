"""Fixtures of the whole suite: seeds, devices, one thread, and poisoned uninitialised memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.poison import poisoned_empty


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "unpoisoned: torch.empty stays as it is (tests that trace or compile)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    reason = "needs a CUDA or ROCm device, and torch.cuda.is_available() is False"
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """One thread per process: small tensors gain nothing from more, and several processes run tests at once."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same seed, so that a failure can be reproduced by running the test alone."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poison(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fill memory that the package does not initialise with NaN."""
    if request.node.get_closest_marker("unpoisoned"):
        yield
        return
    with poisoned_empty():
        yield


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device type that an op can run on."""
    return torch.device(request.param)
