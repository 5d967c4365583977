"""How many tokens each slot of a cache holds.

Invariant: a slot's length is the number of tokens fed and not truncated. What is wrong by one
would otherwise only show as slightly wrong logits, so that whatever breaks it raises.
"""


class SlotLengths:
    """Which slots are taken, and how full they are.

    Args:
        slots: how many there are.
        context: most tokens that one holds.
    """

    def __init__(self, slots: int, context: int) -> None:
        self.slots = slots
        self.context = context
        self._lengths: list[int | None] = [None] * slots

    def open(self) -> int:
        """Take a free slot, of length 0.

        Raises:
            RuntimeError: if none is free.
        """
        for slot, length in enumerate(self._lengths):
            if length is None:
                self._lengths[slot] = 0
                return slot
        raise RuntimeError(f"all {self.slots} slots are taken")

    def close(self, slot: int) -> None:
        """Give a slot back."""
        self.of(slot)
        self._lengths[slot] = None

    def of(self, slot: int) -> int:
        """Tokens that an open slot holds.

        Raises:
            RuntimeError: if the slot isn't open.
        """
        length = self._lengths[slot] if 0 <= slot < self.slots else None
        if length is None:
            raise RuntimeError(f"slot {slot} is not open")
        return length

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens, in O(1).

        Raises:
            ValueError: if the slot holds fewer.
        """
        if not 0 <= length <= self.of(slot):
            raise ValueError(f"cannot truncate {self.of(slot)} tokens to {length}")
        self._lengths[slot] = length

    def room(self, slot: int) -> int:
        """Tokens that still fit into a slot."""
        return self.context - self.of(slot)

    def advance(self, slot: int, count: int) -> None:
        """Count tokens whose entries are in place.

        Raises:
            ValueError: if the slot has no room for them.
        """
        if not 0 <= count <= self.room(slot):
            raise ValueError(f"{count} tokens overrun the context of {self.context}")
        self._lengths[slot] = self.of(slot) + count
