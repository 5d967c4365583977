"""Where one request's guesses come from: a model, a look at what stood there before, or both.

With both, the likelier guess counts (fusion.py). The model is run only where it can be expected to
raise the chance by enough: where a look-up is all but certain, whole runs of tokens are taken
without it, and its cache catches up in one pass when it is needed next.

*Under the rejection rule* nothing that others see may depend on the value of a token drawn by
chance before that token is judged. Look-ups are without chance: all of their law's mass is on one
token, which follows from committed ones. But behind a token that the model drew, whether a look-up
finds anything would tell which token that was; so there each guess takes a pass of the model.

This module does not know the protocol: workers/draft.py owns the chain.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from specpipe.calibration import Calibration, Experience
from specpipe.drafting.fusion import Fusion
from specpipe.drafting.ngram import Finding, NGrams
from specpipe.drafting.past_outputs import PastOutputs
from specpipe.metrics import SOURCES, Source
from specpipe.models.interface import Feed, Interrupted, Logits, SequenceModel
from specpipe.models.partial_head import spread
from specpipe.models.slots import Slots, common_length
from specpipe.pricing import LONGEST_RUN
from specpipe.sampler import Guess, Sampler
from specpipe.sampling import GuessLaw, Sampling

DrafterKind = Literal["hybrid", "model", "ngram"]
"""Which sources there are: the two together, or one of them."""

_WORTH_A_PASS = 0.05  # the model is run where that raises the chance by so much, on average
_WORTH_WAITING = 0.1  # the same where no guess is on its way, so that the target would wait for it
_NEGLIGIBLE = 0.05  # guesses are not made of less chance to be reached and right
_REMEMBERED = 64  # of the model's guesses, to tell what it can be expected to say


class Proposal(NamedTuple):
    """A guess, where it comes from, and when it was made; `guess.confidence` is calibrated."""

    guess: Guess
    source: Source
    begun: float
    ended: float


@dataclass(slots=True)
class _Pending:
    """A position that was guessed and is not known yet.

    Attributes:
        chance: of the guess that was taken.
        drawn: whether its value is up to chance and must not show.
        said: the model's token and confidence, if it was asked.
        found: what was looked up, taken or not.
    """

    chance: float
    drawn: bool
    said: tuple[int, float] | None
    found: Finding | None


class Sources:
    """What all drafters of a worker share.

    Args:
        model: guesses, if there is one.
        lookup: whether guesses are looked up too.
        remember: tokens of past outputs to look up in; 0: none.
        context_length: most tokens of a chain, where there is no model.
        clock: monotonic seconds.

    Raises:
        ValueError: if there is neither a model nor a look-up.
    """

    def __init__(
        self,
        model: SequenceModel | None,
        *,
        lookup: bool = False,
        remember: int = 0,
        context_length: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if model is None and not lookup:
            raise ValueError("guesses must come from somewhere")
        self.model, self.lookup, self.clock = model, lookup, clock
        self.slots = Slots(model) if model else None
        self.past = PastOutputs(remember) if remember else None
        self.context_length = model.context_length if model else context_length
        self.experience, self.calibration = Experience(), Calibration()
        self.fusion = Fusion()
        self.chances: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def names(self) -> tuple[Source, ...]:
        """Which sources there are."""
        present = {"model": self.model, "ngram": self.lookup, "past": self.past is not None}
        return tuple(source for source in SOURCES if present[source])

    def open(
        self, sampling: Sampling, tokens: Sequence[int] = (), guessed: range = range(0)
    ) -> "Drafter":
        """A drafter for one more chain.

        Args:
            sampling: what the request asks for.
            tokens: the chain as it is now.
            guessed: positions in there that are guesses.

        Raises:
            RuntimeError: if the model has no slot free.
        """
        return Drafter(self, sampling, tokens, guessed)

    def forward(self, feeds: Sequence[Feed], interrupted: Interrupted) -> list[Logits] | None:
        """One pass of the model for several drafters; see SequenceModel.forward_all."""
        assert self.model is not None
        return self.model.forward_all(feeds, interrupted)

    def gain(self, chance: float) -> float:
        """What asking the model is expected to add to a guess of this chance."""
        if not self.chances:  # nothing known: as if all chances were equally frequent
            return (1 - chance) ** 2 / 2
        return sum(max(0.0, other - chance) for other in self.chances) / len(self.chances)


class Drafter:
    """Guesses what follows one chain, of which it is handed all tokens each time.

    Attributes:
        sampling: what the request asks for.
        feeds_to: the length that the pass in progress gives the model's cache.
    """

    def __init__(
        self, sources: Sources, sampling: Sampling, tokens: Sequence[int], guessed: range
    ) -> None:
        self.sampling = sampling
        self.feeds_to = 0
        self._sources, self._model = sources, sources.model
        self._sampler = Sampler(sampling)
        self._slot = self._open(tokens)
        self._ngrams: NGrams | None = None
        if sources.lookup:
            self._ngrams = NGrams(sources.context_length, sources.experience, sources.past)
        # Whoever made them may have drawn them.
        self._pending = {at: _Pending(1.0, sampling.rejects, None, None) for at in guessed}

    @property
    def looks_up(self) -> bool:
        """Whether `look_up` can find anything."""
        return self._ngrams is not None

    @property
    def computes(self) -> bool:
        """Whether there is a model."""
        return self._model is not None

    def look_up(
        self,
        tokens: Sequence[int],
        room: int,
        *,
        may_compute: bool = False,
        least: float = _NEGLIGIBLE,
    ) -> list[Proposal]:
        """Guesses for the next positions that take no pass of the model.

        Args:
            tokens: the chain.
            room: how many guesses it has room for.
            may_compute: whether the model can be asked instead.
            least: no guesses are made of less chance to be reached and right.

        Returns:
            Nothing where nothing is found, or where asking the model is worth its time.
        """
        run: list[Proposal] = []
        worth = _WORTH_A_PASS if self._pending else _WORTH_WAITING
        if self._ngrams is None or any(pending.drawn for pending in self._pending.values()):
            return run
        stops, most = self.sampling.stop_token_ids, min(room, LONGEST_RUN)
        reached = math.prod(pending.chance for pending in self._pending.values())
        self._ngrams.follow(tokens)
        while len(run) < most:
            begun = self._sources.clock()
            found = self._ngrams.find()
            if found is None or reached * found.chance < max(least, _NEGLIGIBLE):
                break
            if may_compute and self._sources.gain(found.chance) > worth:
                break
            self._pending[len(tokens) + len(run)] = _Pending(found.chance, False, None, found)
            run.append(self._looked_up(found, found.chance, begun))
            self._ngrams.enter(found.token)
            reached *= found.chance
            if found.token in stops:
                break
        return run

    def lacks(self, tokens: Sequence[int]) -> int:
        """How many tokens of a chain the model must be fed before it can guess the next."""
        assert self._model is not None
        return len(tokens) - self._model.length(self._slot)

    def feed(self, tokens: Sequence[int], chunk: int) -> Feed:
        """What the model is to be fed of a chain in the next pass: so many tokens at most.

        Where that is all that it lacks, a row of logits is wanted: `guess` takes it.
        """
        assert self._model is not None
        length = self._model.length(self._slot)
        fed = tokens[length : length + chunk]
        self.feeds_to = length + len(fed)
        return Feed(self._slot, fed, 1 if self.feeds_to == len(tokens) else 0)

    def guess(self, tokens: Sequence[int], logits: Logits, begun: float) -> Proposal:
        """The guess for the position behind a chain, all of which the model was fed.

        Args:
            tokens: the chain.
            logits: float32[1, outputs], what its last token brought in the model's latest pass.
            begun: when that pass began.
        """
        assert self._model is not None
        position, ids = len(tokens), self._model.output_ids
        if ids is not None and self.sampling.adjusts:
            logits, ids = spread(logits, ids, self._model.vocab_size), None
        guess = self._sampler.guess(logits[-1], position, tokens, ids)
        chance = self._sources.calibration.chance(guess.confidence)
        self._sources.chances.append(chance)
        found = None
        if self._ngrams is not None:
            self._ngrams.follow(tokens)
            found = self._ngrams.find()
        said = (guess.token, guess.confidence)
        takes_found, chance = self._weigh(guess, chance, found)
        if found and takes_found:
            self._pending[position] = _Pending(chance, False, said, found)
            return self._looked_up(found, chance, begun)
        drawn = guess.law is not None and len(guess.law.ids) > 1
        self._pending[position] = _Pending(chance, drawn, said, found)
        guess = guess._replace(confidence=chance)
        return Proposal(guess, "model", begun, self._sources.clock())

    def compute(self, tokens: Sequence[int], chunk: int) -> Proposal | None:
        """A pass of the model for this chain alone; None if there is more to be fed."""
        begun, feed = self._sources.clock(), self.feed(tokens, chunk)
        logits = self._sources.forward([feed], None)
        assert logits is not None
        return self.guess(tokens, logits[0], begun) if feed.rows else None

    def settle(self, start: int, tokens: Sequence[int]) -> None:
        """Learn from what was committed at the positions from `start` on.

        All tokens but the last were guessed right, as far as they were guessed.
        """
        for position, token in enumerate(tokens, start):
            pending = self._pending.pop(position, None)
            if pending is None:
                continue
            said, found, sources = pending.said, pending.found, self._sources
            if said:
                sources.calibration.note(said[1], said[0] == token)
            if found:
                sources.experience.note(found.evidence, found.token == token)
            if said and found and not self.sampling.rejects:
                sources.fusion.note(said[1], found, said[0], token)

    def truncate(self, length: int) -> None:
        """The chain was cut back to so many tokens."""
        if self._model:
            self._model.truncate(self._slot, min(length, self._model.length(self._slot)))
        if self._ngrams is not None:
            self._ngrams.truncate(length)
        self._pending = {at: kept for at, kept in self._pending.items() if at < length}

    def close(self, tokens: Sequence[int] = (), known: int = 0) -> None:
        """The request ended with this chain, of which the first `known` tokens are committed.

        Nothing is kept of a chain without tokens, as after a failure.
        """
        if self._sources.slots:
            assert self._model is not None
            self._sources.slots.give_back(self._slot, tokens[: self._model.length(self._slot)])
        if self._sources.past is not None:
            self._sources.past.remember(tokens[min(self.sampling.prompt_length, known) : known])

    def _open(self, tokens: Sequence[int]) -> int:
        """A slot of the model, with as much of the chain as an earlier request left there.

        The last token is fed in any case: without it there would be no logits.
        """
        if not self._sources.slots:
            return 0
        assert self._model is not None
        slot, left = self._sources.slots.take(tokens)
        self._model.truncate(slot, common_length(left, tokens[:-1]))
        return slot

    def _weigh(self, guess: Guess, chance: float, found: Finding | None) -> tuple[bool, float]:
        """Whether to take what was looked up instead of the model's guess; the chance of what is.

        `chance`: the calibrated one of the model's guess. Under the rejection rule neither may
        depend on whether the two say the same.
        """
        if not found:
            return False, chance
        likelier = found.chance > chance
        if self.sampling.rejects:
            return likelier, max(chance, found.chance)
        if found.token == guess.token:
            return likelier, self._sources.fusion.agreed(guess.confidence, chance, found)
        return self._sources.fusion.disputed(guess.confidence, chance, found)

    def _looked_up(self, found: Finding, chance: float, begun: float) -> Proposal:
        law = GuessLaw((found.token,), (1.0,)) if self.sampling.rejects else None
        guess = Guess(found.token, chance, law)
        return Proposal(guess, found.evidence.source, begun, self._sources.clock())
