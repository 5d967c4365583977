"""What the coordinator sees, put into the words of a policy: of a sequence, and of the workers."""

from collections.abc import Sequence

from specpipe.policy import Judged, Observer, Situation, Verified
from specpipe.sequence import SequenceState
from specpipe.step import Drafted
from specpipe.worker_messages import Block, Verdict


def situation(
    sequence: SequenceState, largest_block: int, now: float, *, draft: bool, target: bool
) -> Situation:
    """What a policy may know, when the target can be told what to do next.

    `draft`, `target`: whether it has guesses that take no pass of a model.
    """
    waiting, pace, drafting = sequence.waiting, sequence.pace, sequence.drafting
    return Situation(
        [guess.confidence for guess in waiting],
        largest_block,
        drafting and not sequence.silent and len(waiting) < largest_block,
        pace.fresh,
        len(sequence.committed),
        waiting[0].offset if waiting else sequence.run,
        now - pace.since if drafting else 0.0,
        pace.cut_age,
        _values_hidden(sequence),
        draft,
        target,
        sequence.extend is not None and sequence.extend.judges,
    )


def _values_hidden(sequence: SequenceState) -> bool:
    """Whether the fate of waiting tokens must not depend on their values: some were drawn.

    A guess that was looked up follows from committed tokens, unless a drawn one precedes it.
    """
    drawn = any(d.law is not None and len(d.law.ids) > 1 for d in sequence.waiting)
    return sequence.sampling.rejects and drawn


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

    def verdict(
        self, sequence: SequenceState, verdict: Verdict, block: Sequence[Drafted], now: float
    ) -> None:
        """A verdict came: tell how long it took, unless the target had to read other tokens too."""
        step, guesses = sequence.steps[0], len(block)
        made = step.made
        if made.reads:
            return
        by_model = (i for i, guess in enumerate(block) if guess.source == "model")
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
            sequence.reading,
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
