"""Draws a request's tokens: the target its own, the draft its guesses, both with the same noise.

The token at absolute position t is `argmax_i log p_i - log E_i`, where the E_i are unit
exponentials that depend on (seed, sample, t, i) alone. Whoever computes the same p therefore draws
the same token, whatever was drafted, batched or restarted on the way there. Temperature 0 is the
same rule without noise.

This module does not know which model the logits came from, nor what becomes of the token.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specpipe.errors import SpecpipeError
from specpipe.filters import Law, adjusted, filtered, likeliest
from specpipe.models.interface import Logits, OutputIds
from specpipe.noise import NoiseStream, noise_words, race, uniforms
from specpipe.sampling import GuessLaw, Sampling, TokenLogprobs

MOST_LAW_TOKENS = 64
"""Most tokens of the law that a guess is drawn from, where that law has to travel."""


class Guess(NamedTuple):
    """A draft's token.

    Attributes:
        token: its id.
        confidence: what a dispatch rule may know of it. Coupled, the chance of the token itself;
            where guesses are judged by rejection that would be lossy (a block made of the tokens
            that look good follows another law), so there it is the chance of the likeliest token.
        law: what it was drawn from, where the target needs it.
    """

    token: int
    confidence: float
    law: GuessLaw | None


class Sampler:
    """Draws the tokens of one request; equal samplers draw equal tokens from equal logits.

    Everywhere `logits` is float32[vocabulary], `position` the index in the sequence (the prompt
    included) of the token to be drawn, and `tokens` the sequence, of which only what stands before
    the position is looked at, and only for penalties.
    """

    _KEPT_ROWS = 8

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._rows: OrderedDict[tuple[int, NoiseStream], NDArray[np.uint64]] = OrderedDict()

    def choose(self, logits: Logits, position: int, tokens: Sequence[int] = ()) -> int:
        """The token at an absolute position.

        Raises:
            SpecpipeError: when the logits are not finite at their maximum.
        """
        logits, best = self._adjusted(logits, position, tokens)
        if self.sampling.greedy:
            return best
        return self._draw(filtered(logits, self.sampling), position, NoiseStream.DRAW)

    def guess(
        self,
        logits: Logits,
        position: int,
        tokens: Sequence[int] = (),
        ids: OutputIds | None = None,
    ) -> Guess:
        """A draft's token: by `choose`, or for the rejection rule from a law of few tokens.

        `ids` are those of the logits, where not every token of the vocabulary has one; there must
        be neither biases nor penalties then.

        Raises:
            SpecpipeError: as choose.
        """
        assert ids is None or not self.sampling.adjusts
        logits, best = self._adjusted(logits, position, tokens)
        if self.sampling.greedy:
            token = best if ids is None else int(ids[best])
            return Guess(token, _chance_of_best(logits), None)
        law = filtered(logits, self.sampling, ids)
        if not self.sampling.rejects:
            token = self._draw(law, position, NoiseStream.DRAW)
            index = law.index(token)
            assert index is not None
            return Guess(token, law.rough_chance(index), None)
        law = likeliest(law, MOST_LAW_TOKENS)
        assert len(law) <= MOST_LAW_TOKENS
        chances = law.chances()
        known = range(len(chances)) if law.ids is None else law.ids.tolist()
        sent = GuessLaw(tuple(known), tuple(chances.tolist()))
        return Guess(self._draw(law, position, NoiseStream.DRAW), float(chances.max()), sent)

    def law(self, logits: Logits, position: int, tokens: Sequence[int] = ()) -> Law:
        """The law that `choose` draws from, at a temperature above 0.

        Raises:
            SpecpipeError: as choose.
        """
        return filtered(self._adjusted(logits, position, tokens)[0], self.sampling)

    def stands(self, chance: float, guessed: float, position: int) -> bool:
        """Whether a guess that has these chances in the target's and the draft's law is accepted.

        With chance min(1, p / q): Leviathan et al., arXiv:2211.17192; Chen et al.,
        arXiv:2302.01318.
        """
        return self._uniform(position, 0, NoiseStream.ACCEPT) * guessed < chance

    def recover(self, law: Law, guess: GuessLaw, position: int) -> int:
        """The token in a refused guess's place: from what p exceeds q by."""
        count = len(law) if law.ids is None else int(law.ids[-1]) + 1
        rest = np.zeros(max(count, max(guess.ids) + 1))
        rest[slice(count) if law.ids is None else law.ids] = law.chances()
        rest[list(guess.ids)] -= guess.chances
        ids = np.flatnonzero(rest > 0)
        if not len(ids):  # equal but for rounding, so that refusing had next to no chance
            return self._draw(law, position, NoiseStream.RECOVER)
        scores = np.log(rest[ids] / rest[ids].max())
        return self._draw(Law(ids, scores), position, NoiseStream.RECOVER)

    def score(self, logits: Logits, position: int, tokens: Sequence[int], token: int) -> float:
        """What `choose` takes the largest of: log p - log E but for a constant; -inf if ruled out.

        At temperature 0 the adjusted logit.
        """
        logits, _ = self._adjusted(logits, position, tokens)
        if self.sampling.greedy:
            return float(logits[token])
        law = filtered(logits, self.sampling)
        at = law.index(token)
        if at is None:
            return -math.inf
        u = self._uniform(position, token, NoiseStream.DRAW)
        return float(law.scores[at]) - math.log(-math.log1p(-u))

    def _adjusted(self, logits: Logits, position: int, tokens: Sequence[int]) -> tuple[Logits, int]:
        """Logits after bias and penalties, and the likeliest token: of equals the lowest id."""
        logits = adjusted(logits, self.sampling, tokens, position)
        best = int(logits.argmax())
        if not math.isfinite(logits[best]):
            raise SpecpipeError(
                f"the model's logits for position {position} are not numbers: its weights or its "
                "dtype are unfit (try --dtype float32)"
            )
        return logits, best

    def _draw(self, law: Law, position: int, stream: NoiseStream) -> int:
        if law.ids is None:
            return race(law.scores, self._words(position, len(law), stream))
        words = self._words(position, int(law.ids[-1]) + 1, stream)[law.ids]
        return int(law.ids[race(law.scores, words)])

    def _uniform(self, position: int, token: int, stream: NoiseStream) -> float:
        return float(uniforms(self._words(position, token + 1, stream)[token:])[0])

    def _words(self, position: int, count: int, stream: NoiseStream) -> NDArray[np.uint64]:
        """The row of a position, kept for a while: after a rollback it is needed once more."""
        row = self._rows.get((position, stream))
        if row is None or len(row) < count:
            sampling = self.sampling
            row = noise_words(sampling.seed, sampling.sample, position, count, stream)
            self._rows[position, stream] = row
            if len(self._rows) > self._KEPT_ROWS:
                self._rows.popitem(last=False)
        return row[:count]


def logprobs_of(logits: Logits, token: int, count: int) -> TokenLogprobs:
    """A token's log-probability under the model itself, and the `count` likeliest tokens'."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= math.log(np.exp(scores).sum())
    scores = np.maximum(scores, np.finfo(np.float32).min)  # JSON has no infinity
    top = np.argsort(-scores, kind="stable")[:count] if count else np.empty(0, dtype=np.int64)
    return TokenLogprobs(float(scores[token]), tuple(top.tolist()), tuple(scores[top].tolist()))


def _chance_of_best(logits: Logits) -> float:
    """The chance of the likeliest token at temperature 1."""
    return float(1 / np.exp(logits - logits.max()).sum(dtype=np.float64))
