"""A slot's length is what it was fed."""

import pytest

from specpipe.models.slot_lengths import SlotLengths


@pytest.fixture
def lengths() -> SlotLengths:
    return SlotLengths(slots=2, context=8)


def test_length_counts_what_was_fed(lengths: SlotLengths) -> None:
    slot = lengths.open()
    lengths.advance(slot, 5)
    lengths.advance(slot, 2)
    assert lengths.of(slot) == 7
    lengths.truncate(slot, 3)
    assert lengths.of(slot) == 3
    assert lengths.room(slot) == 5


@pytest.mark.parametrize("count", [3, -1])
def test_overrun_raises_and_changes_nothing(lengths: SlotLengths, count: int) -> None:
    slot = lengths.open()
    lengths.advance(slot, 6)
    with pytest.raises(ValueError, match="overrun the context of 8"):
        lengths.advance(slot, count)
    assert lengths.of(slot) == 6


def test_truncate_cannot_invent_entries(lengths: SlotLengths) -> None:
    slot = lengths.open()
    lengths.advance(slot, 2)
    for length in (3, -1):
        with pytest.raises(ValueError, match="cannot truncate"):
            lengths.truncate(slot, length)


def test_slots_run_out_and_come_back_empty(lengths: SlotLengths) -> None:
    assert {lengths.open(), lengths.open()} == {0, 1}
    with pytest.raises(RuntimeError, match="all 2 slots"):
        lengths.open()
    lengths.advance(1, 4)
    lengths.close(1)
    assert lengths.open() == 1
    assert lengths.of(1) == 0


@pytest.mark.parametrize("slot", [-1, 0, 2])
def test_slots_that_are_not_open_cannot_be_used(lengths: SlotLengths, slot: int) -> None:
    for use in (lengths.of, lengths.close, lambda slot: lengths.truncate(slot, 0)):
        with pytest.raises(RuntimeError, match="not open"):
            use(slot)
