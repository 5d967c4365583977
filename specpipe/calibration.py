"""Means that forget, and how often guesses of a given confidence turn out right."""

from bisect import bisect_right
from collections.abc import Hashable


class Average:
    """A mean that forgets: each new value counts 1, the older ones `keep`, keep², ..."""

    __slots__ = ("_keep", "value", "weight")

    def __init__(self, keep: float, value: float = 0.0, weight: float = 0.0) -> None:
        self._keep, self.value, self.weight = keep, value, weight

    def add(self, value: float) -> None:
        """Take one more."""
        self.weight = self.weight * self._keep + 1.0
        self.value += (value - self.value) / self.weight

    def drawn_to(self, prior: float, strength: float) -> float:
        """The mean, if `strength` values equal to `prior` had come before."""
        return (self.value * self.weight + prior * strength) / (self.weight + strength)


class Experience:
    """How often guesses of each kind were right, drawn to what was thought before."""

    _KEEP = 0.998
    _STRENGTH = 12.0  # how many observations a prior is worth

    def __init__(self) -> None:
        self._seen: dict[Hashable, Average] = {}

    def chance(self, kind: Hashable, prior: float) -> float:
        """The chance of a guess of this kind."""
        seen = self._seen.get(kind)
        chance = seen.drawn_to(prior, self._STRENGTH) if seen else prior
        return min(max(chance, 0.001), 0.999)

    def note(self, kind: Hashable, right: bool) -> None:
        """Learn what became of a guess."""
        self._seen.setdefault(kind, Average(self._KEEP)).add(float(right))


class Calibration:
    """From what a source thinks of its guesses to how often they are right, those before being so.

    In buckets of confidence; each is drawn to the mean of all, the more, the less it has seen.
    """

    _EDGES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
    PRIOR = 4.0  # guesses
    KEEP = 0.999

    def __init__(self) -> None:
        self._all = Average(self.KEEP, 0.5, 2.0)
        self._buckets = [Average(self.KEEP) for _ in range(len(self._EDGES) + 1)]

    def note(self, confidence: float, right: bool) -> None:
        """Learn what became of a guess."""
        self._all.add(float(right))
        self._bucket(confidence).add(float(right))

    def doubt(self) -> None:
        """Let what was learned count for little beside what comes."""
        for average in (self._all, *self._buckets):
            average.weight = min(average.weight, self.PRIOR)

    @property
    def mean(self) -> float:
        """The chance of a guess of which nothing is known."""
        return min(max(self._all.value, 0.01), 0.99)

    def chance(self, confidence: float) -> float:
        """The chance of a guess of which its source thinks so."""
        return self.drawn(self._bucket(confidence))

    def drawn(self, average: Average) -> float:
        """The mean of some guesses, drawn to that of all."""
        return min(max(average.drawn_to(self._all.value, self.PRIOR), 0.001), 0.999)

    def _bucket(self, confidence: float) -> Average:
        return self._buckets[bisect_right(self._EDGES, confidence)]
