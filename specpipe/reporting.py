"""Who hears of a pipeline's figures, and when: its user, about once a second, and who looks in."""

import time
from collections.abc import Sequence

from specpipe.channel import Channel
from specpipe.events import Command, Event
from specpipe.messages import Stats, Submit
from specpipe.statistics import Statistics
from specpipe.watching import Window
from specpipe.worker_messages import Ready

_EVERY_S = 1.0
_AT_REST_S = 5.0  # Ray forgets what it has not heard for long


class Reporting:
    """Part of a hub's loop.

    Args:
        statistics: gathers the figures.
        user: where they go.
        window: where others look in.

    Attributes:
        due: when the user is to be told next, on the clock of time.monotonic.
    """

    def __init__(self, statistics: Statistics, user: Channel, window: Window) -> None:
        self._statistics, self._user, self.window = statistics, user, window
        self.due = time.monotonic()

    def note(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """An event came at this moment, and was answered by these commands."""
        self._statistics.note(event, commands, now)
        if isinstance(event, Submit):
            self.due = min(self.due, now + _EVERY_S)
        elif isinstance(event, Ready):  # a worker that is new is soon seen
            self.due = now

    def use_policy(self, name: str) -> None:
        """The pipeline goes by another policy from now on."""
        self._statistics.use_setting("policy", name)

    def tell(self, now: float, *, last: bool = False) -> None:
        """Tell the user what the pipeline came to; one that reads nothing misses it."""
        figures = self._statistics.figures(now)
        self._user.send(Stats(figures, last))
        self._statistics.mark(now)
        at_work = figures.num_requests_running + figures.num_requests_waiting
        self.due = now + (_EVERY_S if at_work else _AT_REST_S)
