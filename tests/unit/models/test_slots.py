"""Which slot a request gets: the one that it can go on from, and not the one others still need."""

import pytest

from specpipe.models.slots import Slots, common_length
from tests.toys import TargetLaw, ToyModel


def slots(number: int) -> tuple[Slots, ToyModel]:
    model = ToyModel(TargetLaw(1), num_slots=number)
    return Slots(model), model


def use(slots: Slots, model: ToyModel, *tokens: int) -> int:
    """A request that reads these tokens and ends; returns its slot."""
    slot, left = slots.take(tokens)
    common = common_length(left, tokens)
    model.truncate(slot, common)
    model.held[slot] += tokens[common:]
    slots.give_back(slot, tokens)
    return slot


def test_each_conversation_finds_its_own_slot() -> None:
    """Two conversations that take turns, and read everything anew each time."""
    kept, model = slots(2)
    first, second = use(kept, model, 1, 1, 1, 1), use(kept, model, 2, 2, 2, 2)
    assert first != second
    assert use(kept, model, 1, 1, 1, 1, 3) == first
    assert use(kept, model, 2, 2, 2, 2, 3) == second
    assert kept.take((1, 1, 1, 1, 3, 4)) == (first, [1, 1, 1, 1, 3])


def test_a_common_beginning_is_no_reason_to_overwrite_a_conversation() -> None:
    """All prompts begin with the template's tokens; others' slots are taken once none is fresh."""
    kept, model = slots(2)
    first = use(kept, model, 1, 2, 2, 2, 2)
    second = use(kept, model, 1, 3, 3, 3, 3)
    assert first != second
    assert use(kept, model, 1, 4, 4, 4, 4) == first, "none is fresh: the oldest goes"


def test_no_slot_is_handed_out_twice() -> None:
    """Two requests that write into one cache."""
    kept, model = slots(2)
    use(kept, model, 1, 2, 3)
    first, left = kept.take((1, 2, 3))
    second, nothing = kept.take((1, 2, 3))
    assert (left, nothing) == ([1, 2, 3], [])
    assert first != second
    with pytest.raises((RuntimeError, AssertionError)):
        kept.take((1, 2, 3))


def test_what_is_not_in_good_order_is_cut_off() -> None:
    """Tokens behind the committed ones, which nobody vouches for."""
    kept, model = slots(1)
    slot, _ = kept.take((1, 2))
    model.held[slot] += [1, 2, 3]
    kept.give_back(slot, (1, 2))
    assert model.held[slot] == [1, 2]
    assert kept.take((1, 2, 3)) == (slot, [1, 2])


@pytest.mark.parametrize(
    ("left", "right", "length"), [((), (1,), 0), ((1, 2), (1, 3), 1), ((1, 2), (1, 2, 3), 2)]
)
def test_common_length(left: tuple[int, ...], right: tuple[int, ...], length: int) -> None:
    """One too many would keep an entry of another text."""
    assert common_length(left, right) == common_length(right, left) == length
