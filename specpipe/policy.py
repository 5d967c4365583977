"""When to verify, and how much: the dispatch rules.

The coordinator asks its policy whenever the target can be told what to do next. A policy sees
confidences, lengths and clocks, never the tokens themselves. `elastic`, the rule of this project,
is in elastic.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from specpipe.pace import DraftState


@dataclass(slots=True)
class Situation:
    """What a policy may know when the target is idle, or will be.

    Attributes:
        confidences: of the waiting tokens, in order.
        largest_block: how many tokens the target may be sent at most.
        may_wait: whether the draft is at work, so that waiting can bring another token.
        fresh: whether the draft had to begin anew at the last commit, which contradicted its chain
            or went past the end, and nothing of what it made since then has arrived.
        committed: how many tokens are committed.
        offset: how many guesses the draft made since it began anew, before the first waiting one.
        step_age: seconds since the draft began its step in progress, as far as is known here.
        cut_age: how old the step was that the draft gave up for it; infinite if it was resting,
            None if it went on from one step to the next.
        values_hidden: the confidences belong to tokens whose fate must not depend on them, as under
            the rejection rule, where a token that is left out because of its own value makes the
            output lossy. A policy then decides from counts and clocks.
        free_guesses: whether guesses may come although the draft's model rests, by looking up.
        target_guesses: whether the target can make guesses itself, at the policy's prices.
        queued: the target is still judging the block before. The first waiting token stands for the
            one that it will draw itself: it costs no row, and without it the others are not judged.
    """

    confidences: Sequence[float]
    largest_block: int
    may_wait: bool
    fresh: bool = False
    committed: int = 0
    offset: int = 0
    step_age: float = 0.0
    cut_age: float | None = None
    values_hidden: bool = False
    free_guesses: bool = False
    target_guesses: bool = False
    queued: bool = False


class Decision(NamedTuple):
    """What to do now.

    Attributes:
        send: how many waiting tokens to send (0 decodes one token), or None to wait for more.
        ahead: how many tokens the draft's model may add to the chain before the next decision or
            commit; then it pauses, and only guesses follow that are looked up. None lets it run as
            far as the lookahead allows.
    """

    send: int | None
    ahead: int | None = None


class Judged(NamedTuple):
    """A guess that was compared with what was committed in its place.

    Attributes:
        request, position: of the token.
        offset: how many guesses came before it since the draft last began anew.
        confidence: the draft's own chance for it.
        right: whether it was committed itself; None if an earlier guess was wrong, so that nothing
            can be said about this one.
        begun, ended: when the draft's step ran that made it; seconds.
    """

    request: int
    position: int
    offset: int
    confidence: float
    right: bool | None
    begun: float
    ended: float


class Verified(NamedTuple):
    """A verification, as the coordinator saw it.

    Attributes:
        request: whose.
        guesses: drafted tokens in the block; the forward pass had one row more.
        accepted: how many of them stand.
        seconds: from the pass's beginning (see Pass) to the verdict's arrival.
        alone: whether no model of a draft worked all the while.
        waited: seconds for which the target idled before, since its last verdict.
        free: how many of the guesses came before the first that a model made.
        sequences: that shared the forward pass; `rows`: of all of them. Each is told of.
        queued: the target was still at another pass when this one was sent.
        worked: seconds for which the target worked, as it says itself.
        awaited: whether the pass had to wait for the draft's word.
        reading: whether the draft was still reading the sequence's tokens.
    """

    request: int
    guesses: int
    accepted: int
    seconds: float
    alone: bool
    waited: float = 0.0
    free: int = 0
    sequences: int = 1
    rows: int = 0
    queued: bool = False
    worked: float = 0.0
    awaited: bool = False
    reading: bool = False


class Observer(Protocol):
    """Hears what happens, in order to learn or to write it down."""

    def drafted(self, seconds: float) -> None:
        """A token arrived from the draft, so long after the one before; nothing came between."""

    def restarted(self, seconds: float, given_up: tuple[float, float] | None) -> None:
        """The first token arrived after the draft had to begin anew.

        Args:
            seconds: since it was told to.
            given_up: if a step was in progress then, how old it was, and how long the draft still
                worked on it.
        """

    def verified(self, verification: Verified) -> None:
        """A verdict came."""

    def judged(self, guesses: Sequence[Judged]) -> None:
        """These guesses, neighbours in order, were compared with what was committed."""

    def reflect(self) -> None:
        """All commands are on their way: now is the time for what takes longer."""


class Policy(Observer, Protocol):
    """Decides for which sequences the target works next, and may learn from all of them."""

    def decide(self, situation: Situation) -> Decision:
        """What to do about a sequence if it is the only one; the target is idle."""

    def decide_all(self, situations: Sequence[Situation], spare: float = 0.0) -> list[Decision]:
        """What to do about each of the sequences that can take part in the target's next pass.

        The pass begins without those that wait; if all do, it doesn't.

        Args:
            situations: theirs.
            spare: seconds for which waiting costs nothing: the target is at another pass.
        """

    def awaits_word(self, sequences: int) -> bool:
        """Whether the target waits for what the draft says at once after it had to begin anew.

        `sequences`: how many are running.
        """

    def runs_ahead(self, sequences: int) -> bool:
        """Whether the target is told of its next pass before it has ended one.

        It always is where no draft follows. `sequences`: how many are running.
        """

    def spare(self, rows: int, age: float) -> float:
        """Seconds until the next pass should be sent, if one of so many rows is so old."""

    def prices(self, sequences: int, draft: DraftState) -> tuple[float, ...]:
        """What each guess more must bring of those that the target makes itself; see Proceed.

        Args:
            sequences: how many are running.
            draft: whether one follows; it adds nothing while the target makes guesses.

        Returns:
            Nothing where the target is to make none.
        """
