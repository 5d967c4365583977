"""A head for part of the vocabulary, which grows by the tokens that are seen.

A draft's guesses need not cover everything: the head of a small model is a large part of its
weights, most tokens are rare, and those that a text uses it uses again. Byte-level BPE numbers
tokens in the order of their merging, the frequent ones first, so the lowest ids are kept. What is
not covered can't be guessed, which costs acceptance and nothing else. A distilled draft has a head
of its own for the tokens that its target writes most; others have the rows of the target's.

Not for targets: a missing token would change their output.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from specpipe.models.interface import Logits, OutputIds
from specpipe.models.shape import DecoderConfig

MOST_SEEN = 2048
"""Places for seen tokens; then the oldest make room."""


class SeenTokens:
    """Which tokens have a place beside those that are covered.

    Attributes:
        ids: of the places.

    Args:
        covered: ids that need none; rising.
        size: ids from here on can't be produced.
        always: tokens that count as seen from the beginning, and are never dropped.
        narrow: whether logits have columns for these tokens alone.
    """

    def __init__(
        self, covered: OutputIds, size: int, always: Sequence[int] = (), *, narrow: bool = False
    ) -> None:
        self._columns, self._covered, self._size = covered, frozenset(covered.tolist()), size
        self._narrow = narrow
        self.ids: list[int] = []
        self._known: set[int] = set()
        self._next = self._kept = 0
        self._first = list(dict.fromkeys(always))
        self._order: tuple[OutputIds, NDArray[np.int64]] | None = None

    def see(self, tokens: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Give tokens of a text that have none a place; yields them with it.

        `ids[place]` is the token from then on.
        """
        if self._first:
            always, self._first = self._first, []
            yield from self.see(always)
            self._kept = len(self.ids)
        for token in tokens:
            if token in self._covered or token in self._known or token >= self._size:
                continue
            place = len(self.ids)
            if place < MOST_SEEN:
                self.ids.append(token)
            else:
                place = self._kept + self._next % (MOST_SEEN - self._kept)
                self._next += 1
                self._known.discard(self.ids[place])
                self.ids[place] = token
            self._known.add(token)
            self._order = None
            yield token, place

    @property
    def output_ids(self) -> OutputIds | None:
        """What has a column in `joined`: covered and seen ids, rising; None: all below the size."""
        return self._ordered()[0] if self._narrow else None

    def joined(self, covered: Logits, seen: Logits) -> Logits:
        """Logits float32[rows, outputs] from those of covered ids and those of the places."""
        ids, order = self._ordered()
        found: Logits = np.concatenate([covered, seen[:, : len(self.ids)]], axis=1)[:, order]
        return found if self._narrow else spread(found, ids, self._size)

    def _ordered(self) -> tuple[OutputIds, NDArray[np.int64]]:
        """Covered and seen ids, rising, and where each stands if the seen follow the covered."""
        if self._order is None:
            ids = np.concatenate([self._columns, np.array(self.ids, np.int64)])
            order = ids.argsort()
            self._order = ids[order], order
        return self._order


def covered_ids(config: DecoderConfig, lowest: int) -> OutputIds:
    """The ids that a head covers from the beginning, in the order of its outputs.

    Args:
        config: the model's shape.
        lowest: of a head for all, only so many ids; 0: all that can be produced.
    """
    if config.head_ids is not None:
        return np.array(config.head_ids, np.int64)
    return np.arange(min(lowest or config.output_size, config.output_size))


def spread(logits: Logits, ids: OutputIds, size: int) -> Logits:
    """Logits float32[rows, size] from those of some ids; -inf between them."""
    found = np.full((len(logits), size), -np.inf, np.float32)
    found[:, ids] = logits
    return found
