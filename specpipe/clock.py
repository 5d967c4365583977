"""The clock of another machine: how far it is from ours, and what its times are on ours.

Processes of one host share a monotonic clock; hosts don't, and overlap is a matter of
milliseconds. So the hub asks now and then. The answer was given at some moment between question and
arrival: the middle of the two is wrong by at most half of what passed between them.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

from specpipe.messages import Message, Ping, Pong
from specpipe.worker_messages import Block, Progress, Verdict

_ASK_EVERY_S = 10.0
_DRIFT = 1e-4  # seconds a second that two clocks may part: quartz does half of it


class RemoteClock:
    """What a worker's clock says, in terms of ours.

    Attributes:
        shift: to be added to its times; seconds.
    """

    def __init__(self) -> None:
        self.shift = 0.0
        self._asked = -math.inf
        self._measured = -math.inf
        self._half = math.inf

    def error(self, now: float) -> float:
        """The most by which converted times may be wrong; seconds."""
        return self._half + _DRIFT * (now - self._measured) if self._half < math.inf else math.inf

    def question(self, now: float) -> Ping | None:
        """What to ask, if it is time to."""
        if now - self._asked < _ASK_EVERY_S:
            return None
        self._asked = now
        return Ping(now)

    def hear(self, answer: Pong, now: float) -> None:
        """Take an answer, unless what is known is still more exact."""
        half = (now - answer.sent) / 2
        if 0 <= half <= self.error(now):
            self.shift = answer.sent + half - answer.clock
            self._half, self._measured = half, answer.sent

    def converted(self, message: Message) -> Message:
        """The same message with times of our clock."""
        match message:
            case Block(begun=begun, ended=ended):
                return replace(message, begun=self._all(begun), ended=self._all(ended))
            case Verdict(begun=begun, ended=ended, block=block):
                guesses = tuple(
                    replace(guess, begun=guess.begun + self.shift, ended=guess.ended + self.shift)
                    for guess in block
                )
                begun, ended = begun + self.shift, ended + self.shift
                return replace(message, begun=begun, ended=ended, block=guesses)
            case Progress(begun=begun, ended=ended):
                return replace(message, begun=begun + self.shift, ended=ended + self.shift)
        return message

    def _all(self, times: Iterable[float]) -> tuple[float, ...]:
        return tuple(time + self.shift for time in times)
