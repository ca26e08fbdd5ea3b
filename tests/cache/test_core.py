"""The cache by slots: one length per slot and sequence, and new rows that count only if the call succeeds."""

from __future__ import annotations

import copy

import pytest
import torch

from openmythos.cache import KVCache, Layout, Rows, SlotCache

LAYOUT = Layout(("c_kv", "k_rope"), (5, 2), (0, 3), shared=True)
HEADS = Layout(("k", "v"), (6, 6), (3, 3), shared=False)


def parts(batch: int, count: int, widths: tuple[int, int] = (5, 2)) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, count, widths[0]), torch.randn(batch, count, widths[1])


def write(cache: SlotCache, slots: list[int], new: list[tuple[torch.Tensor, torch.Tensor]]) -> Rows:
    """Append one pair of parts to each slot."""
    first = new[0][0]
    rows = Rows(cache, slots, first.shape[1])
    for index, pair in enumerate(new):
        rows.open(LAYOUT, first.shape[0], first.dtype, first.device)
        rows.append(index, pair)
    rows.commit()
    return rows


@pytest.mark.parametrize("slots", [[0, 1, 2], [0, 2], [2, 0]], ids=str)
def test_every_slot_gets_its_own_rows(slots: list[int]) -> None:
    cache, written = SlotCache(), {slot: [] for slot in slots}
    for _ in range(3):
        cache.new_slot()
    for count in (5, 1, 70, 1):
        new = [parts(2, count) for _ in slots]
        rows = write(cache, slots, new)
        for index, slot in enumerate(slots):
            written[slot].append(torch.cat(new[index], -1))
            want = torch.cat(written[slot], 1)
            assert torch.equal(cache.rows(slot), want)
            assert torch.equal(rows.first[index], want[..., :5])
            assert torch.equal(rows.second[index], want[..., 5:])
    assert [cache.length(slot) for slot in range(3)] == [77 if slot in slots else 0 for slot in range(3)]


def test_sequences_have_lengths_of_their_own() -> None:
    cache = SlotCache()
    slots = [cache.new_slot(), cache.new_slot()]
    write(cache, slots, [parts(3, 6), parts(3, 6)])
    cache.truncate([4, 6, 9])
    assert cache.lengths == [(4, 6, 6), (4, 6, 6)]
    assert cache.length(0) == 6
    assert cache.device_lengths(slots, torch.device("cpu")).tolist() == [[4, 6, 6], [4, 6, 6]]
    with pytest.raises(ValueError, match=r"kv_cache.*\[4, 6\]"):
        Rows(cache, slots, 1)
    cache.truncate(4)
    assert Rows(cache, slots, 1).start == 4
    with pytest.raises(ValueError, match="must be at least 0"):
        cache.truncate([1, -1, 0])


def test_rows_that_are_not_committed_do_not_count() -> None:
    cache = SlotCache()
    slot = cache.new_slot()
    write(cache, [slot], [parts(2, 3)])
    before = cache.rows(slot).clone()
    rows = Rows(cache, [slot], 2)
    rows.open(LAYOUT, 2, torch.float32, torch.device("cpu"))
    rows.append(0, parts(2, 2))
    assert cache.length(slot) == 3
    assert torch.equal(cache.rows(slot), before)


def test_other_layouts_batches_and_lengths_are_refused_before_anything_changes() -> None:
    cache = SlotCache(max_seq_len=8)
    slot = cache.new_slot()
    write(cache, [slot], [parts(2, 3)])
    buffer = cache.buffer
    cpu = torch.device("cpu")
    for layout, batch, count, message in (
        (HEADS, 2, 1, "holds .'c_kv', 'k_rope'. of widths"),
        (LAYOUT, 3, 1, "holds a batch of 2"),
        (LAYOUT, 2, 6, "9 tokens do not fit into max_seq_len=8"),
    ):
        with pytest.raises(ValueError, match=message):
            Rows(cache, [slot], count).open(layout, batch, torch.float32, cpu)
    assert cache.buffer is buffer
    assert cache.lengths == [(3, 3)]


def test_a_transaction_puts_back_lengths_new_slots_and_foreign_entries() -> None:
    cache = KVCache()
    cache.append("a", LAYOUT, parts(2, 3))
    theirs = dict(zip(("c_kv", "k_rope"), parts(2, 4), strict=True))
    cache["b"] = theirs
    before = cache.rows("a").clone()

    def fail() -> None:
        with cache.transaction():
            cache.append("a", LAYOUT, parts(2, 2))
            cache.append("c", LAYOUT, parts(2, 2))
            cache["d"] = theirs
            cache["a"] = theirs
            del cache["b"]
            raise OSError("in the middle")

    with pytest.raises(OSError, match="in the middle"):
        fail()
    assert list(cache) == ["a", "b"]
    assert cache["b"] is theirs
    assert torch.equal(cache["a"]["c_kv"], before[..., :5])
    with cache.transaction():
        cache.append("a", LAYOUT, parts(2, 2))
    assert cache.length("a") == 5


def test_an_empty_batch_has_a_length() -> None:
    cache = KVCache()
    cache.append("a", LAYOUT, parts(0, 3))
    assert cache.length("a") == 3


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copies(duplicate) -> None:
    """A deep copy has its own rows; a shallow copy shares them, as that of a dict of tensors would."""
    cache = KVCache()
    cache.append("a", LAYOUT, parts(2, 3))
    twin = duplicate(cache)
    twin.append("a", LAYOUT, parts(2, 2))
    assert twin.length("a") == 5
    assert cache.length("a") == (3 if duplicate is copy.deepcopy else 5)


def test_gradients_reach_the_new_rows_alone() -> None:
    cache = SlotCache()
    slot = cache.new_slot()
    write(cache, [slot], [parts(2, 3)])
    new = tuple(part.requires_grad_() for part in parts(2, 2))
    rows = Rows(cache, [slot], 2)
    rows.open(LAYOUT, 2, torch.float32, torch.device("cpu"))
    first, second = rows.append(0, new)
    assert first.shape == (2, 5, 5)
    (first.sum() + second.square().sum()).backward()
    assert torch.equal(new[0].grad, torch.ones(2, 2, 5))
    assert torch.equal(new[1].grad, 2 * new[1].detach())
    assert not cache.buffer.requires_grad
