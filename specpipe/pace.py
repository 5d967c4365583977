"""Where a draft is in its work, as far as the coordinator can tell from what it hears."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto


class DraftState(Enum):
    """Where the draft stands with a request."""

    ABSENT = auto()  # not opened, or lost
    OPENING = auto()  # reading the tokens; it can't be waited for yet
    OPEN = auto()
    FAILED = auto()  # the draft reported an error for this request: not opened again

    @property
    def follows(self) -> bool:
        """Whether it hears of the request's commits."""
        return self is DraftState.OPENING or self is DraftState.OPEN


@dataclass(slots=True)
class Pace:
    """Where the draft is in its work, as far as can be told from here; seconds.

    Attributes:
        since: when its step in progress began.
        cut_age: if it began anew then, how old the step was that it gave up; infinite if it was
            resting. None if it went on from one step to the next.
        fresh: whether it began anew because of a commit.
        given_up: of the step that it gave up, once it has reported it: how old it was at the
            restart, and how long it still worked on it.
        known: False until the first token after an open.
    """

    since: float = 0.0
    cut_age: float | None = None
    fresh: bool = False
    given_up: tuple[float, float] | None = None
    known: bool = False

    def restart(self, now: float, *, resting: bool, fresh: bool) -> None:
        """The draft is being told something that lets it begin another step."""
        self.cut_age = math.inf if resting else now - self.since
        self.since, self.fresh, self.given_up = now, fresh, None

    def note_stretches(self, begun: Sequence[float], ended: Sequence[float]) -> None:
        """Look for the step that was in progress at the restart among those now reported."""
        for begin, end in zip(begun, ended, strict=True):
            if begin < self.since <= end:
                self.given_up = self.since - begin, end - self.since
