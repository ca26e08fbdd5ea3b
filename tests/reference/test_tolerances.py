"""The tolerances themselves: what they accept and reject, and that unwritten memory is detected."""

from __future__ import annotations

import pytest
import torch

from openmythos.cache import KVCache, Layout
from tests.tolerances import assert_close, assert_within, errors

EXACT = torch.arange(1, 98, dtype=torch.float64)


def test_twice_the_error_of_plain_torch_passes_and_three_times_does_not() -> None:
    noise = torch.randn(97, dtype=torch.float64) * 1e-4
    plain = EXACT + noise
    assert_close("twice", EXACT + 1.9 * noise, EXACT, plain, torch.bfloat16)
    with pytest.raises(AssertionError, match="Frobenius"):
        assert_close("far", EXACT + 1000 * noise, EXACT, plain, torch.bfloat16)
    with pytest.raises(AssertionError, match="Frobenius"):
        assert_close("above the cap", plain, EXACT, plain + noise, torch.float64)


def test_one_wrong_element_does_not_hide_in_the_norm() -> None:
    exact = torch.ones(100_000, dtype=torch.float64)
    wrong = exact.clone()
    wrong[77] = 1.0002
    with pytest.raises(AssertionError, match="largest"):
        assert_close("one", wrong, exact, exact, torch.float32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_a_number_never_passes(bad: float) -> None:
    wrong = EXACT.clone()
    wrong[3] = bad
    with pytest.raises(AssertionError):
        assert_close("bad", wrong, EXACT, EXACT, torch.bfloat16)
    with pytest.raises(AssertionError):
        assert_within("missing", EXACT, wrong, 1e9)
    assert errors(wrong, wrong).frobenius == 0


def test_shapes_have_to_agree() -> None:
    with pytest.raises(AssertionError, match="shape"):
        errors(torch.zeros(3, 1), torch.zeros(3))


def test_memory_that_the_package_does_not_write_holds_nan() -> None:
    cache = KVCache()
    layout = Layout(("k", "v"), (2, 2), (1, 1), shared=False)
    rows = cache.append("layer", layout, (torch.ones(1, 3, 2), torch.ones(1, 3, 2)))
    assert rows.eq(1).all()
    assert cache.core.buffer[:, :, 3:].isnan().all()


def test_only_the_package_is_poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = torch.empty(3)
    monkeypatch.setitem(globals(), "__name__", "openmythos.pretended")
    assert torch.empty(3).isnan().all()
    assert torch.empty_like(mine).isnan().all()
    assert mine.new_empty(3).isnan().all()
    assert torch.empty(3, dtype=torch.int32).gt(10**9).all()


@pytest.mark.unpoisoned
def test_the_marker_leaves_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "__name__", "openmythos.pretended")
    assert not torch.empty(3, dtype=torch.int32).eq(torch.iinfo(torch.int32).max // 2).all()
