"""What the target is told to do for one sequence, and the guesses that are judged by it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from specpipe.metrics import Source
from specpipe.policy import Judged
from specpipe.sampling import GuessLaw
from specpipe.worker_messages import Extend, LookedUp, Proceed
from specpipe.worker_state import Pass


class Drafted(NamedTuple):
    """A guess: the token, the draft's confidence, its source, when that worked, and its law.

    `offset`: how many guesses came before it since the draft last began anew.
    """

    token: int
    confidence: float
    source: Source
    begun: float
    ended: float
    offset: int
    law: GuessLaw | None = None

    @classmethod
    def of(cls, made: LookedUp, offset: int) -> Self:
        """A guess of the target's own."""
        return cls(made.token, made.confidence, made.source, made.begun, made.ended, offset)

    def judged(self, request: int, position: int, right: bool | None) -> Judged:
        """What became of it; see Judged."""
        return Judged(
            request, position, self.offset, self.confidence, right, self.begun, self.ended
        )


def agreeing(guesses: Sequence[Drafted], tokens: Sequence[int]) -> int:
    """How many of the first tokens are what was guessed."""
    pairs = zip(guesses, tokens, strict=False)
    return next(
        (i for i, (g, t) in enumerate(pairs) if g.token != t), min(len(guesses), len(tokens))
    )


def fates(
    request: int, start: int, guesses: Sequence[Drafted], tokens: Sequence[int], telling: int
) -> list[Judged]:
    """What became of guesses from a position on, now that it is known what stands there.

    Of those behind a wrong one, and behind the first `telling`, nothing is known.
    """
    same = agreeing(guesses, tokens)
    ended = guesses if same < min(len(guesses), len(tokens)) else guesses[:same]
    return [
        guess.judged(request, start + i, i < same if i <= same and i < telling else None)
        for i, guess in enumerate(ended)
    ]


def laws_of(block: Sequence[Drafted]) -> tuple[GuessLaw, ...]:
    """What the guesses were drawn from, where the acceptance rule asks for it."""
    return tuple(guess.law for guess in block if guess.law)


@dataclass(frozen=True, slots=True)
class Step:
    """A command to the target, for one sequence.

    Attributes:
        message: the command.
        block: the guesses in it; a Proceed's first one is for the place of the target's own token.
        made: the pass that it is for.
        alone: whether no model of a draft worked when it was sent, or made any of the guesses.
        open_ended: whether the target may add guesses of its own, so that none can be told to
            follow.
    """

    message: Extend | Proceed
    block: list[Drafted]
    made: Pass
    alone: bool
    open_ended: bool = False

    def after(self, position: int, token: int, guesses: list[Drafted], *, whole: bool) -> "Step":
        """What it comes to once the step before is answered: `token` was committed at `position`.

        `guesses`: what is left of the sequence's guesses; `whole`: see Proceed.
        """
        if isinstance(self.message, Extend):
            return self
        message = self.message.after(position, token, whole=whole)
        block = guesses[: len(message.judged)]
        return Step(message, block, self.made, self.alone, self.open_ended)
