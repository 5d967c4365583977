"""A worker's signs of life: what it gets done, for another thread to read while it works.

A loop that hangs can't say so. So it counts its steps, and notes what a pass of so many tokens has
taken it at best: by that, whoever reads can tell a worker that is slow from one that hangs.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from specpipe.models.interface import Feed, Interrupted, Logits, OutputIds, SequenceModel


class Reading(NamedTuple):
    """What a worker says of itself.

    Attributes:
        beats: how many steps it has made.
        answers: how many messages it has sent.
        resting: whether it waits for messages, or still prepares for its first.
        expected_s: how long the pass in progress takes at best; 0 if none is, or that isn't known.
    """

    beats: int
    answers: int
    resting: bool
    expected_s: float


class Pulse:
    """Counts one worker's steps; any thread may read.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beats, self._answers = 0, 0
        self._resting, self._loaded = True, False
        self._rows, self._begun = 0, 0.0
        # At best: whatever holds a pass up lengthens any other figure.
        self._pass_s, self._row_s = math.inf, math.inf

    def read(self) -> Reading:
        """The state of this moment."""
        rows, expected = self._rows, 0.0
        if rows and self._pass_s < math.inf:
            expected = max(self._pass_s, rows * self._row_s)
        resting = self._resting or not self._loaded
        return Reading(self._beats, self._answers, resting, expected)

    def beat(self) -> None:
        """Another step is made, or begins."""
        self._beats += 1
        self._resting = False

    def answer(self) -> None:
        """A message was sent."""
        self._answers += 1
        self.beat()

    def rest(self) -> None:
        """Nothing is to be done until the next beat. Before the first rest all is preparation."""
        self._resting = self._loaded = True

    def begin_pass(self, rows: int) -> None:
        """A pass over so many tokens begins."""
        self.beat()
        self._rows, self._begun = rows, self._clock()

    def end_pass(self, *, whole: bool) -> None:
        """It is over; one that was given up tells nothing about how long passes take."""
        if whole:
            seconds = self._clock() - self._begun
            self._pass_s = min(self._pass_s, seconds)
            self._row_s = min(self._row_s, seconds / self._rows)
        self._rows = 0
        self.beat()


class Watched:
    """A `SequenceModel` whose passes are noted.

    Args:
        model: computes.
        pulse: is told.
    """

    def __init__(self, model: SequenceModel, pulse: Pulse) -> None:
        self._model, self._pulse = model, pulse

    @property
    def vocab_size(self) -> int:
        """As the model's."""
        return self._model.vocab_size

    @property
    def output_ids(self) -> OutputIds | None:
        """As the model's."""
        return self._model.output_ids

    @property
    def context_length(self) -> int:
        """As the model's."""
        return self._model.context_length

    @property
    def num_slots(self) -> int:
        """As the model's."""
        return self._model.num_slots

    def open(self) -> int:
        """As the model's."""
        return self._model.open()

    def close(self, slot: int) -> None:
        """As the model's."""
        self._model.close(slot)

    def length(self, slot: int) -> int:
        """As the model's."""
        return self._model.length(slot)

    def truncate(self, slot: int, length: int) -> None:
        """As the model's."""
        self._model.truncate(slot, length)

    def forward(
        self, slot: int, tokens: Sequence[int], rows: int, interrupted: Interrupted = None
    ) -> Logits | None:
        """As the model's; each time that it asks whether it is still wanted is a step."""
        logits = None
        self._pulse.begin_pass(len(tokens))
        try:
            logits = self._model.forward(slot, tokens, rows, self._counted(interrupted))
        finally:
            self._pulse.end_pass(whole=logits is not None)
        return logits

    def forward_all(
        self, feeds: Sequence[Feed], interrupted: Interrupted = None
    ) -> list[Logits] | None:
        """As the model's; steps as in `forward`."""
        logits = None
        self._pulse.begin_pass(sum(len(feed.tokens) for feed in feeds))
        try:
            logits = self._model.forward_all(feeds, self._counted(interrupted))
        finally:
            self._pulse.end_pass(whole=logits is not None)
        return logits

    def _counted(self, interrupted: Interrupted) -> Interrupted:
        if interrupted is None:  # a pass that is not asked after runs in one go
            return None
        question = interrupted

        def asked() -> bool:
            self._pulse.beat()
            return question()

        return asked
