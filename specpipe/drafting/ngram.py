"""Guesses by looking up what followed the same words before: in microseconds, without a model.

Where the last tokens stood before, what followed then is likely to follow again: the more so the
longer the match, and the more of the latest such places agree. How much so is learned as it runs.
Source of the idea: Saxena, prompt lookup decoding, 2023; Yang et al., arXiv:2304.04487.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from specpipe.calibration import Experience
from specpipe.drafting.past_outputs import PastOutputs
from specpipe.drafting.suffix_index import Match, SuffixIndex
from specpipe.metrics import Source

_PLACES = 4  # how many of the latest places are heard
_LENGTHS = (1, 2, 3, 5, 8, 16, 32)
_PRIORS = (0.3, 0.5, 0.65, 0.75, 0.85, 0.93, 0.95)
"""Chance of a match of each length alone: SmolLM2-135M, greedy, 140 prompts of Spec-Bench."""


class Evidence(NamedTuple):
    """What a guess rests on.

    Attributes:
        source: the sequence itself, or past outputs.
        length: class of the match's length.
        found, agreeing: how many places were found, and how many of them say this token.
    """

    source: Source
    length: int
    found: int
    agreeing: int

    @property
    def prior(self) -> float:
        """The chance before anything was learned; fitted by hand to the same texts."""
        alone = _PRIORS[self.length]
        return (self.agreeing / self.found) ** 2 * (1 - (1 - alone) / self.found)


class Finding(NamedTuple):
    """A token that may come next, and the chance that it does."""

    token: int
    chance: float
    evidence: Evidence


class NGrams:
    """Looks up one request's chain, in itself and in past outputs.

    Args:
        capacity: most tokens that the chain can have.
        experience: how often such guesses were right, by their evidence; shared by all requests.
        past: past outputs, if there are any.
    """

    def __init__(
        self, capacity: int, experience: Experience, past: PastOutputs | None = None
    ) -> None:
        self._index = SuffixIndex(capacity)
        self._experience = experience
        self._past = past

    def follow(self, tokens: Sequence[int]) -> None:
        """Read what was added to the chain, of which these are all tokens, since the last call."""
        self._index.extend(tokens[len(self._index) :])

    def enter(self, token: int) -> None:
        """The chain has this token more."""
        self._index.extend((token,))

    def find(self) -> Finding | None:
        """The likelier of what the two say comes after the chain; None if neither knows."""
        own = self._best("ngram", self._index.matches(_PLACES))
        past = None
        if self._past is not None:
            past = self._best("past", self._past.matches(_PLACES, self._index))
        if own and past:
            return own if own.chance >= past.chance else past
        return own or past

    def truncate(self, length: int) -> None:
        """The chain was cut back to so many tokens."""
        self._index.truncate(length)

    def _best(self, source: Source, matches: Sequence[Match]) -> Finding | None:
        """The token that most of the places say; the latest of those."""
        if not matches:
            return None
        if len(matches) == 1:
            token, agreeing = matches[0].token, 1
        else:
            token, agreeing = Counter(match.token for match in matches).most_common(1)[0]
        longest = max(match.length for match in matches if match.token == token)
        evidence = Evidence(source, bisect_right(_LENGTHS, longest) - 1, len(matches), agreeing)
        return Finding(token, self._experience.chance(evidence, evidence.prior), evidence)
