"""The very same coordinator and policies on a virtual clock, against modelled workers.

What is modelled is what a policy can feel: how long a draft step and a verification take, how soon
a step is dropped, how long a message is under way, and which guesses are right. Everything follows
from the arguments; nothing depends on the machine that simulates.

The clock counts whole nanoseconds, so that what is meant to happen at the same moment does. At one
moment a draft step ends before a verification does, and a step that would begin does so last.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from specpipe.coordinator import Coordinator
from specpipe.events import Send, StartTimer, TimerFired
from specpipe.messages import (
    Block,
    Close,
    Closed,
    Commit,
    Exhausted,
    Extend,
    Finish,
    Message,
    Open,
    Opened,
    Progress,
    Ready,
    Submit,
    Tokens,
    Verdict,
)
from specpipe.metrics import RequestMetrics
from specpipe.policy import Observer, Policy
from specpipe.sampling import Sampling

PARTS = 20
"""Into so many parts a run is cut to see how much they differ."""

_TICK_S = 1e-9
_RIGHT, _WRONG = 1, 2  # the tokens of this world
_STEP_ENDS, _PASS_ENDS, _ARRIVAL = 0, 1, 2  # the order of what happens at one moment
_INFINITE = 1 << 62


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


class ConstantFates:
    """Each guess is right with the same chance, and the confidence says nothing.

    Equal seeds give common random numbers: with a higher chance, more of the same positions.
    """

    def __init__(self, acceptance: float, seed: int, length: int) -> None:
        self._right: list[bool] = (np.random.default_rng(seed).random(length) < acceptance).tolist()

    def right(self, position: int) -> bool:
        """See Fates."""
        return self._right[position]

    def confidence(self, position: int) -> float:
        """See Fates."""
        return 0.5


class ReplayedFates:
    """Guesses as they were recorded, over and over."""

    def __init__(self, guesses: Sequence[tuple[float, bool]]) -> None:
        self._guesses = guesses

    def right(self, position: int) -> bool:
        """See Fates."""
        return self._guesses[position % len(self._guesses)][1]

    def confidence(self, position: int) -> float:
        """See Fates."""
        return self._guesses[position % len(self._guesses)][0]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulated request came to.

    Attributes:
        tokens: committed.
        seconds: on the virtual clock.
        marks: the moments at which each of PARTS equal parts of the tokens was committed.
        metrics: the request's.
    """

    tokens: int
    seconds: float
    marks: tuple[float, ...]
    metrics: RequestMetrics

    @property
    def tokens_per_second(self) -> float:
        """On the virtual clock."""
        return self.tokens / self.seconds


class Simulation:
    """One long request; what it came to is `outcome`, once `run` is over.

    Args:
        policy: judged by it.
        hardware: how long things take.
        fates: which guesses are right; asked for up to tokens + lookahead + 1 positions.
        tokens: how many to commit.
        lookahead: most drafted tokens ahead of the committed ones.
        seed: of the jitter.
        observers: hear what the policy hears.
    """

    def __init__(
        self,
        policy: Policy,
        hardware: Hardware,
        fates: Fates,
        tokens: int,
        *,
        lookahead: int = 64,
        seed: int = 0,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.now = 0
        self.outcome: Outcome
        self.hardware = hardware
        self._tokens = tokens
        self._events: list[tuple[int, int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._mail: deque[Any] = deque()
        self._latency = ticks(hardware.latency)
        self._noise = np.random.default_rng(seed)
        self._finish: Finish | None = None
        self._marks: list[float] = []
        self._coordinator = Coordinator(
            policy, lookahead=lookahead, wait_timeout_s=1e3 * hardware.step, observers=observers
        )
        self._draft = _DraftModel(self, fates)
        self._target = _TargetModel(self, self._draft)

    def run(self) -> Outcome:
        """Play until all tokens are committed."""
        tell, context = self.tell, self._tokens + 2
        tell(Ready("target", 1, 1, context, 3, "virtual", ()))
        tell(Ready("draft", 1, 1, context + 1, 3, "virtual", ()))
        tell(Submit(0, (_RIGHT,), self._tokens, Sampling(0.0, 0, 0, ())))
        events, mail = self._events, self._mail
        while self._finish is None:
            if mail:
                self._handle(mail.popleft())
            else:
                self.now, _, _, then, args = heapq.heappop(events)
                then(*args)
        seconds = self.now * _TICK_S
        self.outcome = Outcome(self._tokens, seconds, tuple(self._marks), self._finish.metrics)
        return self.outcome

    def at(self, moment: int, order: int, then: Callable[..., None], *args: Any) -> None:
        """Let something happen."""
        self._number += 1
        heapq.heappush(self._events, (moment, order, self._number, then, args))

    def duration(self, seconds: float) -> int:
        """Ticks that something takes this time."""
        if self.hardware.jitter:
            seconds *= max(0.1, 1 + self.hardware.jitter * self._noise.standard_normal())
        return max(1, ticks(seconds))

    def tell(self, message: Any) -> None:
        """Send a message to the coordinator."""
        if self._latency:
            self.at(self.now + self._latency, _ARRIVAL, self._mail.append, message)
        else:
            self._mail.append(message)

    def _handle(self, event: Any) -> None:
        for command in self._coordinator.handle(event, self.now * _TICK_S):
            if isinstance(command, Send):
                worker = self._target if command.role == "target" else self._draft
                if self._latency:
                    moment = self.now + self._latency
                    self.at(moment, _ARRIVAL, worker.arrive, command.message)
                else:
                    worker.arrive(command.message)
            elif isinstance(command, StartTimer):
                fired = TimerFired(command.request, command.timer)
                moment = self.now + ticks(command.seconds)
                self.at(moment, _ARRIVAL, self._mail.append, fired)
            elif isinstance(command, Tokens):
                written = command.start + len(command.tokens) - 1  # the prompt is one token
                while written * PARTS >= self._tokens * (len(self._marks) + 1):
                    self._marks.append(self.now * _TICK_S)
            elif isinstance(command, Finish):
                self._finish = command
        self._coordinator.reflect()


def ticks(seconds: float) -> int:
    """Whole nanoseconds."""
    return round(seconds / _TICK_S)


class _DraftModel:
    """Speaks the draft's side of the protocol, as workers/draft.py does.

    Its tokens are just right or wrong.

    Attributes:
        busy: whether a step is in progress.
    """

    def __init__(self, world: Simulation, fates: Fates) -> None:
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
                self._world.at(moment, _STEP_ENDS, self._drop, self._pass)
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
        world.at(self._ends, _STEP_ENDS, self._end, self._pass)

    def _read(self, message: Message) -> None:
        if isinstance(message, Commit):
            end = message.start + len(message.tokens)
            if end > self._length or end > self._wrong_at:
                self._length, self._wrong_at = end, _INFINITE
            self._serial, self._limit, self._known = message.last_serial, message.limit, end
        elif isinstance(message, Open):
            self._length = self._known = len(message.tokens)
            self._serial, self._limit = message.serial, message.limit
            self._wrong_at, self._opened = _INFINITE, False
        elif isinstance(message, Close):
            self._length = self._limit = 0
            self._told = self._serial
            self._world.tell(Closed("draft", message.request, 1))

    def _note_stretch(self) -> None:
        self._stretches.append((self._began * _TICK_S, self._world.now * _TICK_S))

    def _end(self, number: int) -> None:
        """One more token."""
        if number != self._pass:
            return
        self.busy = False
        self._note_stretch()
        position, token = self._length, _WRONG
        if self._wrong_at == _INFINITE:
            if self._fates.right(position):
                token = _RIGHT
            else:
                self._wrong_at = position
        self._length += 1
        if not self._opened:
            self._opened = True
            self._world.tell(Opened(0, 1))
        begun, ended = zip(*self._stretches, strict=True)
        self._stretches = []
        confidence = self._fates.confidence(position)
        self._world.tell(Block(0, 1, self._serial, position, (token,), (confidence,), begun, ended))
        self._go_on()


class _TargetModel:
    """Speaks the target's side of the protocol; a guess stands iff it is right."""

    def __init__(self, world: Simulation, draft: _DraftModel) -> None:
        self._world, self._draft = world, draft

    def arrive(self, message: Message) -> None:
        """Begin the work that a message asks for; the coordinator asks for one at a time."""
        world = self._world
        if isinstance(message, Extend):
            seconds = world.hardware.pass_seconds(len(message.tokens))
            if self._draft.busy:
                seconds *= 1 + world.hardware.contention
            ended = world.now + world.duration(seconds)
            world.at(ended, _PASS_ENDS, self._end, message, world.now)
        elif isinstance(message, Close):
            world.tell(Closed("target", message.request, 1))

    def _end(self, extend: Extend, began: int) -> None:
        end = extend.start + len(extend.tokens)
        if end < extend.verify_from:
            self._world.tell(Progress(extend.request, 1, extend.extend_id, end))
            return
        accepted = 0
        for token in extend.tokens[extend.verify_from - extend.start :]:
            if token != _RIGHT:
                break
            accepted += 1
        begun, ended = began * _TICK_S, self._world.now * _TICK_S
        self._world.tell(
            Verdict(extend.request, 1, extend.extend_id, accepted, _RIGHT, begun, ended, 0.0)
        )
