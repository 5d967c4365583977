"""The workers of the simulator: how long they take, and what they say.

They speak the protocol as those in workers/ do, about tokens that are just right or wrong.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from specpipe.messages import (
    Block,
    Close,
    Closed,
    Commit,
    Exhausted,
    Extend,
    Message,
    Open,
    Opened,
    Progress,
    Verdict,
)

TICK_S = 1e-9
RIGHT, WRONG = 1, 2
"""The tokens of this world."""

STEP_ENDS, PASS_ENDS, ARRIVAL = 0, 1, 2
"""The order of what happens at one moment."""

_INFINITE = 1 << 62


def ticks(seconds: float) -> int:
    """Whole nanoseconds."""
    return round(seconds / TICK_S)


@dataclass(frozen=True, slots=True)
class Hardware:
    """How long things take; seconds.

    Attributes:
        step: one draft step.
        passes: (rows, seconds) of the target's forward pass, by rising rows; straight lines between
            and beyond. A block of m guesses needs m + 1 rows.
        grain: at which parts of a step the draft looks for commits: 0 drops a step at once, 0.25 at
            its next quarter, 1 never.
        latency: one way of a message.
        contention: by which part a pass is slowed while the draft works, as they share memory.
        jitter: standard deviation of each duration, relative to it.
    """

    step: float
    passes: tuple[tuple[int, float], ...]
    grain: float = 0.0
    latency: float = 0.0
    contention: float = 0.0
    jitter: float = 0.0

    @classmethod
    def of_ratio(cls, c: float, row_cost: float = 0.0, *, grain: float = 0.0) -> "Hardware":
        """Draft steps of 1 ms, passes of c ms; each further row costs a part of the first one."""
        return cls(1e-3, ((1, c * 1e-3), (2, c * (1 + row_cost) * 1e-3)), grain)

    def pass_seconds(self, rows: int) -> float:
        """The time of a forward pass over so many rows, the draft at rest."""
        points = self.passes
        if len(points) == 1:
            return points[0][1]
        i = 1
        while i < len(points) - 1 and points[i][0] < rows:
            i += 1
        (x0, y0), (x1, y1) = points[i - 1], points[i]
        return max(0.0, y0 + (y1 - y0) * (rows - x0) / (x1 - x0))


class Fates(Protocol):
    """Which guesses are right: a property of the position, and so the same for every policy.

    A draft that is right up to a position makes one and the same guess there, whenever it makes it.
    """

    def right(self, position: int) -> bool:
        """Whether the guess for a position is right, those before it being right."""

    def confidence(self, position: int) -> float:
        """The draft's own chance for it."""


class World(Protocol):
    """What a worker needs of the simulation that it is part of."""

    now: int
    hardware: Hardware

    def at(self, moment: int, order: int, then: Callable[..., None], *args: Any) -> None:
        """Let something happen."""

    def duration(self, seconds: float) -> int:
        """Ticks that something takes this time."""

    def tell(self, message: Any) -> None:
        """Send a message to the coordinator."""


class DraftModel:
    """Speaks the draft's side of the protocol, as workers/draft.py does.

    Its tokens are just right or wrong.

    Attributes:
        busy: whether a step is in progress.
    """

    def __init__(self, world: World, fates: Fates) -> None:
        self._world, self._fates = world, fates
        self._inbox: deque[Message] = deque()
        self.busy = False
        self._pass = 0  # the number of the step that counts; another one was dropped
        self._began = self._ends = 0
        self._length = self._wrong_at = self._known = self._serial = self._limit = 0
        self._told = -1
        self._opened = False
        self._stretches: list[tuple[float, float]] = []

    def arrive(self, message: Message) -> None:
        """Take a message: now, or when the step in progress lets it in."""
        self._inbox.append(message)
        if not self.busy:
            self._go_on()
        elif self._outdates(message):
            moment = self._next_look()
            if moment < self._ends:
                self._pass += 1
                self._world.at(moment, STEP_ENDS, self._drop, self._pass)
                self._ends = moment

    def _outdates(self, message: Message) -> bool:
        if not isinstance(message, Commit):
            return True
        end = message.start + len(message.tokens)
        return end > self._length or end > self._wrong_at

    def _next_look(self) -> int:
        """When the step in progress can be dropped."""
        now, grain = self._world.now, self._world.hardware.grain
        if not grain or now == self._began:
            return now
        part = ticks(grain * self._world.hardware.step)
        return self._began - (self._began - now) // part * part

    def _drop(self, number: int) -> None:
        if number == self._pass:
            self.busy = False
            self._note_stretch()
            self._go_on()

    def _go_on(self) -> None:
        """Read what came, then say that there is nothing to do, or begin a step."""
        while self._inbox:
            self._read(self._inbox.popleft())
        if self._length >= self._limit:
            if self._told < self._serial:
                self._told = self._serial
                self._world.tell(Exhausted(0, 1, self._serial, "limit"))
            return
        world = self._world
        self.busy = True
        self._pass += 1
        self._began = world.now
        self._ends = world.now + world.duration(world.hardware.step)
        world.at(self._ends, STEP_ENDS, self._end, self._pass)

    def _read(self, message: Message) -> None:
        if isinstance(message, Commit):
            end = message.start + len(message.tokens)
            if end > self._length or end > self._wrong_at:
                self._length, self._wrong_at = end, _INFINITE
            self._serial, self._limit, self._known = message.last_serial, message.rest_at, end
        elif isinstance(message, Open):
            self._length = self._known = len(message.tokens)
            self._serial, self._limit = message.serial, message.rest_at
            self._wrong_at, self._opened = _INFINITE, False
        elif isinstance(message, Close):
            self._length = self._limit = 0
            self._told = self._serial
            self._world.tell(Closed("draft", message.request, 1))

    def _note_stretch(self) -> None:
        self._stretches.append((self._began * TICK_S, self._world.now * TICK_S))

    def _end(self, number: int) -> None:
        """One more token."""
        if number != self._pass:
            return
        self.busy = False
        self._note_stretch()
        position, token = self._length, WRONG
        if self._wrong_at == _INFINITE:
            if self._fates.right(position):
                token = RIGHT
            else:
                self._wrong_at = position
        self._length += 1
        if not self._opened:
            self._opened = True
            self._world.tell(Opened(0, 1))
        begun, ended = zip(*self._stretches, strict=True)
        self._stretches = []
        confidence = self._fates.confidence(position)
        self._world.tell(
            Block(0, 1, self._serial, position, (token,), (confidence,), ("model",), begun, ended)
        )
        self._go_on()


class TargetModel:
    """Speaks the target's side of the protocol; a guess stands iff it is right."""

    def __init__(self, world: World, draft: DraftModel) -> None:
        self._world, self._draft = world, draft

    def arrive(self, message: Message) -> None:
        """Begin the work that a message asks for; the coordinator asks for one at a time."""
        world = self._world
        if isinstance(message, Extend):
            seconds = world.hardware.pass_seconds(len(message.tokens))
            if self._draft.busy:
                seconds *= 1 + world.hardware.contention
            ended = world.now + world.duration(seconds)
            world.at(ended, PASS_ENDS, self._end, message, world.now)
        elif isinstance(message, Close):
            world.tell(Closed("target", message.request, 1))

    def _end(self, extend: Extend, began: int) -> None:
        end = extend.start + len(extend.tokens)
        begun, ended = began * TICK_S, self._world.now * TICK_S
        if end < extend.verify_from:
            self._world.tell(Progress(extend.request, 1, extend.extend_id, end, begun, ended))
            return
        accepted = 0
        for token in extend.tokens[extend.verify_from - extend.start :]:
            if token != RIGHT:
                break
            accepted += 1
        self._world.tell(
            Verdict(extend.request, 1, extend.extend_id, accepted, RIGHT, begun, ended, 0.0)
        )
