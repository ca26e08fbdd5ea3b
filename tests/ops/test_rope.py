"""rope and rope_append_: every backend, storage dtype, odd size, stride and place in the cache."""

from __future__ import annotations

import pytest
import torch

from openmythos import ops, reference
from tests.backends import Entry, each_entry
from tests.cases import check_entry, check_outputs, check_repeatable, doubled, each_dtype, randn, strided
from tests.tolerances import assert_close

EPS = 1e-6


def angles(positions: int, pairs: int, scale: float = 50) -> torch.Tensor:
    """A table of cosines and sines (positions, pairs, 2)."""
    turned = randn(positions, pairs, scale=scale)
    return torch.stack((turned.cos(), turned.sin()), dim=-1)


@each_entry("rope")
@each_dtype
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 2), (2, 63, 3, 6), (1, 129, 24, 32), (3, 2, 16, 94), (1, 0, 2, 4)], ids=str
)
def test_rope(entry: Entry, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    _, new, _, d = shape
    x, table = randn(*shape, dtype=dtype), angles(new, d // 2)
    for inverse in (False, True):
        check_entry(entry, reference.rope, (x, table, inverse), dtype)


@each_entry("rope")
@each_dtype
def test_rope_strided(entry: Entry, dtype: torch.dtype) -> None:
    """The rope key is the tail of a projection, the table a slice of a longer one."""
    whole = randn(2, 7, 26, dtype=dtype)
    table = angles(20, 3)[4:11]
    check_entry(entry, reference.rope, (whole[..., None, 20:], table), dtype)
    check_entry(entry, reference.rope, (randn(2, 4, 7, 6, dtype=dtype).transpose(1, 2), table), dtype)


@each_entry("rope")
def test_rope_keeps_norms_and_undoes_itself(entry: Entry) -> None:
    x, table = randn(2, 9, 3, 8), angles(9, 4)
    torch.testing.assert_close(entry.call(entry.call(x, table), table, True), x, rtol=0, atol=1e-5)


@each_entry("rope")
@each_dtype
def test_repeatable(entry: Entry, dtype: torch.dtype) -> None:
    check_repeatable(entry, (randn(2, 63, 3, 10, dtype=dtype), angles(63, 5), False))


@each_dtype
def test_gradient(dtype: torch.dtype) -> None:
    x, table, grad = randn(2, 7, 3, 10, dtype=dtype), angles(7, 5), randn(2, 7, 3, 10, dtype=dtype)
    found = []
    for function, cast in ((ops.rope, dtype), (reference.rope, torch.float64), (reference.rope, dtype)):
        leaf = x.to(cast).requires_grad_()
        out = function(leaf, table.to(torch.float64) if cast == torch.float64 else table)
        found.append(torch.autograd.grad(out, leaf, grad.to(cast))[0])
    assert_close("gradient of x", *found, dtype)


def test_gradients_of_gradients_and_of_the_table() -> None:
    x, table = randn(1, 3, 2, 4).requires_grad_(), angles(3, 2)
    assert torch.autograd.gradgradcheck(
        lambda x: ops.rope(x, table.double()), (x.detach().double().requires_grad_(),), atol=1e-6
    )
    leaf = table.clone().requires_grad_()
    want = torch.autograd.grad(reference.rope(x, leaf).square().sum(), leaf)
    assert torch.equal(torch.autograd.grad(ops.rope(x, leaf).square().sum(), leaf)[0], want[0])


APPENDS = pytest.mark.parametrize(
    ("batch", "new", "latent", "key"), [(1, 1, 20, 6), (3, 1, 512, 64), (2, 63, 37, 2), (5, 4, 256, 32), (2, 0, 8, 4)]
)


def _appended(call, down, weight, cos_sin, rows, position) -> torch.Tensor:
    """The cache after the call, which must change only the new tokens' rows."""
    cache = rows.clone()
    call(down, weight, cos_sin, cache, position, EPS)
    kept = torch.ones(cache.shape[:2], dtype=torch.bool)
    for sequence in range(down.shape[0]):
        start = 0 if position is None else int(position[sequence])
        kept[sequence, start : start + down.shape[1]] = False
    assert torch.equal(cache[kept], rows[kept]), "rows of other tokens changed"
    return cache


@each_entry("rope_append_")
@each_dtype
@pytest.mark.parametrize("kind", [None, torch.int32, torch.int64], ids=["first", "int32", "int64"])
@APPENDS
def test_append(
    entry: Entry, dtype: torch.dtype, kind: torch.dtype | None, batch: int, new: int, latent: int, key: int
) -> None:
    room = new + 9
    down, weight = randn(batch, new, latent + key, dtype=dtype), 1 + randn(latent, dtype=dtype, scale=0.3)
    table, rows = angles(room, key // 2), randn(batch, room, latent + key, dtype=dtype)
    position = None if kind is None else torch.randint(0, 10, (batch,), dtype=kind)
    args = (down, weight, table, rows, position)
    found = _appended(entry.call, *args)
    check_outputs("rope_append_", [found], lambda *args: _appended(reference.rope_append_, *args), args, dtype)


@each_entry("rope_append_")
@each_dtype
def test_append_to_strided_rows(entry: Entry, dtype: torch.dtype) -> None:
    """Rows of one slot of a larger buffer, from the tail of a projection, in another dtype."""
    down, weight = strided(randn(2, 3, 26, dtype=dtype)), 1 + randn(20, dtype=dtype, scale=0.3)
    buffer = torch.full((2, 4, 9, 26), float("nan"))
    for position in (None, torch.tensor([6, 0])):
        want = torch.zeros(2, 9, 26, dtype=torch.float64)
        plain = torch.zeros(2, 9, 26)
        table = angles(9, 3)
        args = (down, weight, table, buffer[1, :2], position, EPS)
        entry.call(*args)
        reference.rope_append_(*doubled(args[:3]), want, position, EPS)
        reference.rope_append_(down, weight, table, plain, position, EPS)
        written = want.abs().sum(-1) > 0
        assert_close("rows", buffer[1, :2][written], want[written], plain[written], dtype)
    assert buffer[0].isnan().all()
    assert buffer[1, 2:].isnan().all()


@each_entry("rope_append_")
def test_append_equals_its_parts(entry: Entry) -> None:
    """The cache holds the results of the separate norm and rotation."""
    down, weight, table = randn(2, 5, 26), 1 + randn(20, scale=0.3), angles(5, 3)
    rows = torch.full((2, 5, 26), float("nan"))
    entry.call(down, weight, table, rows, None, EPS)
    torch.testing.assert_close(rows[..., :20], reference.rms_norm(down[..., :20], weight, EPS), rtol=1e-6, atol=1e-6)
    turned = reference.rope(down[..., None, 20:], table)[:, :, 0]
    torch.testing.assert_close(rows[..., 20:], turned, rtol=1e-6, atol=1e-6)
