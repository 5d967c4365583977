"""A decoder of the llama family, made for few rows at a time and for bits that can be relied on.

The logits of a position depend on the tokens up to it, and on nothing else: not on how many rows
were computed together, in which chunks, or beside whom. Prefill follows the same rules as
decoding, so that a cache that was rebuilt equals the one that was lost.

What all devices have in common is here; `cpu/` and `cuda/` compute.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from specpipe.models.interface import Feed, Interrupted, Logits, OutputIds
from specpipe.models.shape import DecoderConfig
from specpipe.models.slot_lengths import SlotLengths

LAYERS_BETWEEN_QUESTIONS = 4
"""How many layers a pass goes through before it asks whether it is still wanted."""


class Decoder(ABC):
    """A `SequenceModel` (see interface.py).

    Attributes:
        config: the model's shape.
        dtype: how the weights are kept.
    """

    def __init__(self, config: DecoderConfig, dtype: str, num_slots: int, most_rows: int) -> None:
        self.config = config
        self.dtype = dtype
        self._lengths = SlotLengths(num_slots, config.context_length)
        self._most_rows = most_rows

    @property
    def vocab_size(self) -> int:
        """Number of token ids, a padded tail included."""
        return self.config.vocab_size

    @property
    def output_ids(self) -> OutputIds | None:
        """Which tokens the latest pass's logits have columns for; None: all below output_size."""
        return None

    @property
    def context_length(self) -> int:
        """Most tokens that a slot can hold."""
        return self.config.context_length

    @property
    def num_slots(self) -> int:
        """Sequences that can be held at once."""
        return self._lengths.slots

    def open(self) -> int:
        """Take a free slot, of length 0; raises RuntimeError when none is free."""
        return self._lengths.open()

    def close(self, slot: int) -> None:
        """Give a slot back."""
        self._lengths.close(slot)

    def length(self, slot: int) -> int:
        """Tokens that the slot holds."""
        return self._lengths.of(slot)

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens of the slot, in O(1)."""
        self._lengths.truncate(slot, length)

    def forward(
        self, slot: int, tokens: Sequence[int], rows: int, interrupted: Interrupted = None
    ) -> Logits | None:
        """Feed `tokens` at the end of the slot; return the logits after each of the last `rows`.

        `interrupted` is asked every few layers; once it says yes, the slot is as it was before
        the call, and None is returned.

        Returns:
            float32[rows, outputs]: output_size of them, or as many as there are `output_ids`.

        Raises:
            ValueError: for no tokens, too many, ids outside the vocabulary, or too many rows.
        """
        logits = self.forward_all([Feed(slot, tokens, rows)], interrupted)
        return None if logits is None else logits[0]

    def forward_all(
        self, feeds: Sequence[Feed], interrupted: Interrupted = None
    ) -> list[Logits] | None:
        """Feed several sequences at once: one pass over the weights for all of them.

        Returns:
            float32[rows, outputs] for each feed; None if interrupted, the slots being as they
            were.

        Raises:
            ValueError: as `forward`, or if a slot is fed twice.
        """
        if len({feed.slot for feed in feeds}) < len(feeds):
            raise ValueError("a slot can be fed only once in a pass")
        for feed in feeds:
            self._check(feed)
        before = [self._lengths.of(feed.slot) for feed in feeds]
        logits = None
        try:
            logits = self._run(feeds, interrupted)
        finally:
            if logits is None:
                for feed, length in zip(feeds, before, strict=True):
                    self._lengths.truncate(feed.slot, length)
        return logits

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Bytes of the weights that a pass reads."""

    @abstractmethod
    def _run(self, feeds: Sequence[Feed], interrupted: Interrupted) -> list[Logits] | None:
        """What `forward_all` does; slots may have any length between if it fails."""

    def _chunks(self, feeds: Sequence[Feed]) -> list[list[Feed]]:
        """Cut feeds into passes of at most `most_rows` tokens, in order."""
        if sum(len(feed.tokens) for feed in feeds) <= self._most_rows:
            return [list(feeds)]
        passes: list[list[Feed]] = [[]]
        room = self._most_rows
        for feed in feeds:
            first, count = 0, len(feed.tokens)
            while first < count:
                if not room:
                    passes.append([])
                    room = self._most_rows
                last = min(count, first + room)
                rows = max(0, last - max(first, count - feed.rows))
                passes[-1].append(Feed(feed.slot, feed.tokens[first:last], rows))
                room -= last - first
                first = last
        return passes

    def _check(self, feed: Feed) -> None:
        tokens, room = feed.tokens, self._lengths.room(feed.slot)
        if not 0 <= feed.rows <= len(tokens) or not tokens:
            raise ValueError(f"{feed.rows} rows of {len(tokens)} tokens cannot be had")
        if len(tokens) > room:
            raise ValueError(
                f"{len(tokens)} tokens do not fit into the {room} places left of "
                f"a context of {self.context_length}"
            )
        if min(tokens) < 0 or max(tokens) >= self.vocab_size:
            raise ValueError(f"token ids must lie between 0 and {self.vocab_size - 1}")
