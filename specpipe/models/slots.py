"""The slots of a model, and what is still in those that nobody holds.

A request that begins like an earlier one, as each turn of a conversation does, need not read again
what that one left in its slot.
"""

from collections.abc import Sequence

from specpipe.models.interface import SequenceModel

_WORTH_KEEPING = 0.5
"""A slot is taken for less than this share of it only where no other is free."""


class Slots:
    """Hands out a model's slots.

    Args:
        model: whose slots nobody else opens or closes.
    """

    def __init__(self, model: SequenceModel) -> None:
        self._model = model
        self._left: dict[int, list[int]] = {}  # the tokens of free slots; the oldest come first
        self._taken = 0

    def take(self, tokens: Sequence[int]) -> tuple[int, list[int]]:
        """Take a slot for a text; returns it and the tokens that it holds already.

        The latter may go another way than `tokens` does: cut the slot back where it does.

        Raises:
            RuntimeError: if none is free.
        """
        slot = self._choose(tokens)
        self._taken += 1
        if slot is None:
            return self._model.open(), []
        return slot, self._left.pop(slot)

    def give_back(self, slot: int, tokens: Sequence[int]) -> None:
        """Let others have a slot, of which the first `tokens` are in good order."""
        self._model.truncate(slot, len(tokens))
        self._left[slot] = list(tokens)
        self._taken -= 1

    def _choose(self, tokens: Sequence[int]) -> int | None:
        """A free slot that was used before, or None for one that never was."""
        if not self._left:
            return None
        common = {slot: common_length(left, tokens) for slot, left in self._left.items()}
        likest = max(common, key=lambda slot: common[slot])
        if common[likest] and common[likest] >= _WORTH_KEEPING * len(self._left[likest]):
            return likest
        fresh = self._taken + len(self._left) < self._model.num_slots
        return None if fresh else next(iter(self._left))


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two texts have in common at their beginning."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
