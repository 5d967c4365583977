"""Where the last tokens of a text stood before, found in constant time.

For each of a few lengths k, a table of hashes knows the latest position at which the same k tokens
ended, and every position knows the one before it: the match finder of LZ77 compressors (Deutsch,
RFC 1951, section 4), with several lengths instead of one. Appending, forgetting and looking up
cost the same after a thousand tokens and after a million. Nothing is ever scanned again, and
forgetting the last tokens restores the tables exactly, so guesses may be entered like any others.

This module does not know what the tokens mean, nor whether what followed then will follow again.
"""

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

ORDERS = (1, 2, 3, 5, 8, 16)
"""Lengths of the contexts that are looked up, ascending."""

LONGEST = 64
"""Matches are not measured further back than this."""

_MODULUS = (1 << 61) - 1
_BASE = 0x1F3D5B79A2C4E68D % _MODULUS
_POWERS = tuple(pow(_BASE, order, _MODULUS) for order in ORDERS)
_SPREAD = 0x9E3779B97F4A7C15  # Knuth's multiplicative hashing: the upper bits depend on all
_HOPS = 16  # entries of a chain looked at, those of other contexts with the same slot included


class Match(NamedTuple):
    """An earlier place where the text's last tokens stood.

    Attributes:
        token: what followed there.
        length: how many tokens agree, at most LONGEST.
        age: how many tokens ago the match ended.
    """

    token: int
    length: int
    age: int


class SuffixIndex:
    """A text that can be asked where its last tokens, or another text's, stood before.

    Args:
        capacity: most tokens that it will hold; 28 bytes of tables each, and 36 in use.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        bits = max(4, (capacity - 1).bit_length())
        self._shift = 64 - bits
        self._tokens = array("i")
        self._prefix = array("Q", [0])  # hash of the first n tokens, as a polynomial
        self._heads = [array("i", [-1]) * (1 << bits) for _ in ORDERS]
        self._earlier = [array("i") for _ in ORDERS]

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def full(self) -> bool:
        """Whether no more tokens fit."""
        return len(self._tokens) >= self._capacity

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens.

        Raises:
            ValueError: if they go past the capacity.
        """
        if len(self._tokens) + len(tokens) > self._capacity:
            raise ValueError(f"{len(self)} and {len(tokens)} tokens exceed {self._capacity}")
        for token in tokens:
            self._prefix.append((self._prefix[-1] * _BASE + token + 1) % _MODULUS)
            self._tokens.append(token)
            end = len(self._tokens) - 1
            for heads, earlier, slot in zip(
                self._heads, self._earlier, self._slots(end), strict=True
            ):
                earlier.append(heads[slot])
                heads[slot] = end

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        while len(self._tokens) > length:
            end = len(self._tokens) - 1
            for heads, earlier, slot in zip(
                self._heads, self._earlier, self._slots(end), strict=True
            ):
                heads[slot] = earlier.pop()
            self._tokens.pop()
            self._prefix.pop()

    def matches(self, most: int, text: "SuffixIndex | None" = None) -> list[Match]:
        """The latest earlier places where the longest context known stood, latest first.

        All of them agree with the text's end in at least the same number of tokens, one of ORDERS.

        Args:
            most: how many at most.
            text: whose end is looked for; by default the own.
        """
        text = self if text is None else text  # an empty text is not none
        end = len(text._tokens) - 1
        for index in range(len(ORDERS) - 1, -1, -1):
            if ORDERS[index] > end + 1:
                continue
            found = list(self._follow(index, text, end, most))
            if found:
                return found
        return []

    def _follow(self, index: int, text: "SuffixIndex", end: int, most: int) -> Iterator[Match]:
        """Matches of one context length, latest first."""
        order, tokens, ours = ORDERS[index], text._tokens, self._tokens
        wanted = tokens[end - order + 1 : end + 1]
        at = self._heads[index][text._slot(index, end, self._shift)]
        last, earlier = len(ours) - 1, self._earlier[index]
        for _ in range(_HOPS):
            if at < 0:
                return
            if at < last and ours[at - order + 1 : at + 1] == wanted:
                yield Match(ours[at + 1], self._length(at, text, end, order), last - at)
                most -= 1
                if not most:
                    return
            at = earlier[at]

    def _length(self, at: int, text: "SuffixIndex", end: int, length: int) -> int:
        ours, tokens = self._tokens, text._tokens
        longest = min(LONGEST, at + 1, end + 1)
        while length < longest and ours[at - length] == tokens[end - length]:
            length += 1
        return length

    def _slots(self, end: int) -> list[int]:
        return [self._slot(index, end, self._shift) for index in range(len(ORDERS))]

    def _slot(self, index: int, end: int, shift: int) -> int:
        """Where the context that ends at a position belongs in a table."""
        begin = max(0, end + 1 - ORDERS[index])
        before = self._prefix[begin] * _POWERS[index]
        return ((self._prefix[end + 1] - before) % _MODULUS * _SPREAD >> shift) & (
            (1 << (64 - shift)) - 1
        )
