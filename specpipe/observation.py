"""What the coordinator sees of the workers, put into the words of an Observer."""

from collections.abc import Sequence

from specpipe.policy import Judged, Observer, Verified
from specpipe.sequence import SequenceState
from specpipe.worker_messages import Block, Verdict


class Observation:
    """Tells all observers the same; knows no more than the coordinator and its clock.

    Args:
        observers: the policy, and whoever else wants to know.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def block(self, sequence: SequenceState, block: Block, new_tokens: int, now: float) -> None:
        """A block came with so many new tokens: note where the draft is, and how long it took."""
        pace = sequence.pace
        if pace.cut_age is not None:
            pace.note_stretches(block.begun, block.ended)
        if not new_tokens:
            return
        if pace.known and "model" in block.sources:  # a look-up says nothing of a step's length
            seconds = now - pace.since
            for observer in self._observers:
                if pace.cut_age is None:
                    observer.drafted(seconds / new_tokens)
                elif new_tokens == 1:
                    observer.restarted(seconds, pace.given_up)
        pace.since, pace.cut_age, pace.fresh, pace.known = now, None, False, True

    def verdict(self, sequence: SequenceState, verdict: Verdict, now: float) -> None:
        """A verdict came: tell how long it took, unless the target had to read other tokens too."""
        step = sequence.steps[0]
        guesses, made = len(step.block), step.made
        if made.reads:
            return
        by_model = (i for i, guess in enumerate(step.block) if guess.source == "model")
        verification = Verified(
            sequence.request,
            guesses,
            verdict.accepted,
            now - made.begun,
            step.alone,
            made.waited,
            next(by_model, guesses),
            made.sequences,
            made.rows + verdict.extra_rows,
            made.queued,
            verdict.ended - verdict.begun,
            sequence.awaited,
        )
        for observer in self._observers:
            observer.verified(verification)

    def judged(self, guesses: Sequence[Judged]) -> None:
        """It is known what became of these guesses."""
        if guesses:
            for observer in self._observers:
                observer.judged(guesses)

    def reflect(self) -> None:
        """There is time."""
        for observer in self._observers:
            observer.reflect()
