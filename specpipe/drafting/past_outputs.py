"""What a pipeline wrote before, kept so that repeated structure becomes free guesses.

The tokens of one request can show up as another's *guesses*, never in its output: the target
decides about each. How well guesses fit can be seen in a request's speed, however, so one store
must not serve tenants who may not learn of each other; each pipeline has its own.
"""

from collections.abc import Sequence

from specpipe.drafting.suffix_index import Match, SuffixIndex


class PastOutputs:
    """The latest tokens written, in bounded memory.

    Two halves: when the newer one is full, it becomes the older one, whose text is forgotten.

    Args:
        capacity: most tokens kept; at least 2.
    """

    def __init__(self, capacity: int) -> None:
        self._half = capacity // 2
        self._newer = SuffixIndex(self._half)
        self._older: SuffixIndex | None = None

    def __len__(self) -> int:
        return len(self._newer) + (len(self._older) if self._older else 0)

    def remember(self, tokens: Sequence[int]) -> None:
        """Keep an output."""
        tokens = tokens[-self._half :]
        if len(self._newer) + len(tokens) > self._half:
            self._older, self._newer = self._newer, SuffixIndex(self._half)
        self._newer.extend(tokens)

    def matches(self, most: int, text: SuffixIndex) -> list[Match]:
        """Where a text's last tokens stood; see SuffixIndex. The half that has more of them."""
        newer = self._newer.matches(most, text)
        older = self._older.matches(most, text) if self._older else []
        return max(newer, older, key=lambda found: found[0].length if found else 0)
