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
        self._shift, self._mask = 64 - bits, (1 << bits) - 1
        self._tokens = array("i")
        self._prefix = array("Q", [0])  # hash of the first n tokens, as a polynomial
        self._tables = [
            _Table(order, power, array("i", [-1]) * (1 << bits), array("i"))
            for order, power in zip(ORDERS, _POWERS, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._tokens)

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
            for table, slot in zip(self._tables, self._slots(self), strict=True):
                table.earlier.append(table.heads[slot])
                table.heads[slot] = end

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        while len(self._tokens) > length:
            for table, slot in zip(self._tables, self._slots(self), strict=True):
                table.heads[slot] = table.earlier.pop()
            self._tokens.pop()
            self._prefix.pop()

    def matches(self, most: int, text: "SuffixIndex | None" = None) -> list[Match]:
        """The latest earlier places where the longest context known stood, latest first.

        All of them agree with the text's end in at least the same number of tokens, one of ORDERS.

        Args:
            most: how many at most.
            text: whose end is looked for; by default the own.
        """
        if not (self if text is None else text)._tokens:
            return []
        slots = None if text is None else self._slots(text)
        for index in range(len(ORDERS) - 1, -1, -1):
            table = self._tables[index]
            at = table.earlier[-1] if slots is None else table.heads[slots[index]]
            if at >= 0:
                found = list(self._follow(table, at, self if text is None else text, most))
                if found:
                    return found
        return []

    def _follow(self, table: "_Table", at: int, text: "SuffixIndex", most: int) -> Iterator[Match]:
        """Matches of one context length, latest first, from a position on."""
        order, tokens, ours = table.order, text._tokens, self._tokens
        end, last = len(tokens) - 1, len(ours) - 1
        wanted = tokens[end - order + 1 :] if order <= end + 1 else None
        for _ in range(_HOPS):
            if at < 0:
                return
            if at < last and ours[at - order + 1 : at + 1] == wanted:
                yield Match(ours[at + 1], self._length(at, text, order), last - at)
                most -= 1
                if not most:
                    return
            at = table.earlier[at]

    def _length(self, at: int, text: "SuffixIndex", length: int) -> int:
        ours, tokens = self._tokens, text._tokens
        end = len(tokens) - 1
        longest = min(LONGEST, at + 1, end + 1)
        while length < longest and ours[at - length] == tokens[end - length]:
            length += 1
        return length

    def _slots(self, text: "SuffixIndex") -> list[int]:
        """Where the contexts that a text ends with belong in the tables."""
        prefix, shift, mask = text._prefix, self._shift, self._mask
        whole, length = prefix[-1], len(prefix) - 1
        return [
            (
                (whole - prefix[length - order if order < length else 0] * power)
                % _MODULUS
                * _SPREAD
                >> shift
            )
            & mask
            for order, power in zip(ORDERS, _POWERS, strict=True)
        ]


class _Table(NamedTuple):
    """What is known of contexts of one length.

    Attributes:
        order: the length.
        power: of the hash's base, by it.
        heads: the latest position that such a context ends at, by its slot; -1: none.
        earlier: for each position, the one before it with the same slot.
    """

    order: int
    power: int
    heads: "array[int]"
    earlier: "array[int]"
