"""The workers of the simulator: how long they take, and what they say.

They speak the protocol as those in workers/ do, about tokens that are just right or wrong.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from specpipe.messages import Message
from specpipe.worker_messages import (
    Block,
    Close,
    Closed,
    Commit,
    Exhausted,
    Extend,
    Open,
    Opened,
    Proceed,
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
        step: one draft step, of one sequence.
        step_row: what each further sequence adds to a step, as a part of it.
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
    step_row: float = 0.0
    grain: float = 0.0
    latency: float = 0.0
    contention: float = 0.0
    jitter: float = 0.0

    @classmethod
    def of_ratio(cls, c: float, row_cost: float = 0.0, *, grain: float = 0.0) -> "Hardware":
        """Draft steps of 1 ms, passes of c ms; each further row costs a part of the first one."""
        return cls(1e-3, ((1, c * 1e-3), (2, c * (1 + row_cost) * 1e-3)), grain=grain)

    def step_seconds(self, sequences: int) -> float:
        """The time of a draft step for so many sequences."""
        return self.step * (1 + (sequences - 1) * self.step_row)

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
    Each request has fates of its own.
    """

    def right(self, position: int) -> bool:
        """Whether the guess for a position is right, those before it being right."""

    def confidence(self, position: int) -> float:
        """The draft's own chance for it."""


class World(Protocol):
    """What a worker needs of the simulation that it is part of."""

    hardware: Hardware

    @property
    def now(self) -> int:
        """The moment; in ticks."""

    def at(self, moment: int, order: int, then: Callable[..., None], *args: Any) -> None:
        """Let something happen."""

    def duration(self, seconds: float) -> int:
        """Ticks that something takes this time."""

    def tell(self, message: Any) -> None:
        """Send a message to the coordinator."""


@dataclass(slots=True)
class _Chain:
    """A request as the draft has it.

    Attributes:
        fates: of its guesses.
        length: of the chain, which is wrong from `wrong_at` on.
        serial, limit: as it was last told; `told`: the serial at which it said that it rests.
        opened: whether it said that it has read the request.
        stretches: when it worked since its last block; seconds.
    """

    fates: Fates
    length: int
    serial: int
    limit: int
    wrong_at: int = _INFINITE
    told: int = -1
    opened: bool = False
    stretches: list[tuple[float, float]] = field(default_factory=list)


class DraftModel:
    """Speaks the draft's side of the protocol, as workers/draft.py does: a step guesses for all.

    Its tokens are just right or wrong.

    Args:
        world: that it is part of.
        fates: from a request to what becomes of its guesses.

    Attributes:
        busy: whether a step is in progress.
    """

    def __init__(self, world: World, fates: Callable[[int], Fates]) -> None:
        self._world, self._fates = world, fates
        self._inbox: deque[Message] = deque()
        self._chains: dict[int, _Chain] = {}
        self.busy = False
        self._current: list[int] = []  # whose step is in progress
        self._pass = 0  # the number of the step that counts; another one was dropped
        self._began = self._ends = 0

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
        if not isinstance(message, Open | Commit | Close) or message.request not in self._current:
            return False
        if not isinstance(message, Commit):
            return True
        return _contradicts(self._chains[message.request], message)

    def _next_look(self) -> int:
        """When the step in progress can be dropped."""
        now, hardware = self._world.now, self._world.hardware
        if not hardware.grain or now == self._began:
            return now
        part = ticks(hardware.grain * hardware.step_seconds(len(self._current)))
        return self._began - (self._began - now) // part * part

    def _drop(self, number: int) -> None:
        if number == self._pass:
            self.busy = False
            for request in self._current:
                self._note_stretch(self._chains[request])
            self._go_on()

    def _go_on(self) -> None:
        """Read what came, then say who can't go on, or begin a step."""
        while self._inbox:
            self._read(self._inbox.popleft())
        world, self._current = self._world, []
        for request, chain in self._chains.items():
            if chain.length < chain.limit:
                self._current.append(request)
            elif chain.told < chain.serial:
                chain.told = chain.serial
                world.tell(Exhausted(request, 1, chain.serial, "limit"))
        if not self._current:
            return
        self.busy = True
        self._pass += 1
        self._began = world.now
        seconds = world.hardware.step_seconds(len(self._current))
        self._ends = world.now + world.duration(seconds)
        world.at(self._ends, STEP_ENDS, self._end, self._pass)

    def _read(self, message: Message) -> None:
        if isinstance(message, Commit):
            chain = self._chains[message.request]
            if _contradicts(chain, message):
                chain.length, chain.wrong_at = message.start + len(message.tokens), _INFINITE
            chain.serial, chain.limit = message.last_serial, message.rest_at
        elif isinstance(message, Open):
            self._chains[message.request] = _Chain(
                self._fates(message.request), len(message.tokens), message.serial, message.rest_at
            )
        elif isinstance(message, Close):
            del self._chains[message.request]
            self._world.tell(Closed("draft", message.request, 1))

    def _note_stretch(self, chain: _Chain) -> None:
        chain.stretches.append((self._began * TICK_S, self._world.now * TICK_S))

    def _end(self, number: int) -> None:
        """One more token for each."""
        if number != self._pass:
            return
        self.busy = False
        for request in self._current:
            self._guess(request, self._chains[request])
        self._go_on()

    def _guess(self, request: int, chain: _Chain) -> None:
        self._note_stretch(chain)
        position, token = chain.length, WRONG
        if chain.wrong_at == _INFINITE:
            if chain.fates.right(position):
                token = RIGHT
            else:
                chain.wrong_at = position
        chain.length += 1
        if not chain.opened:
            chain.opened = True
            self._world.tell(Opened(request, 1))
        begun, ended = zip(*chain.stretches, strict=True)
        chain.stretches = []
        confidence = chain.fates.confidence(position)
        self._world.tell(
            Block(
                *(request, 1, chain.serial, position, (token,), (confidence,)),
                *(("model",), begun, ended),
            )
        )


def _contradicts(chain: _Chain, commit: Commit) -> bool:
    """Whether it goes past what was guessed, or is something else."""
    end = commit.start + len(commit.tokens)
    return end > chain.length or end > chain.wrong_at


class TargetModel:
    """Speaks the target's side of the protocol; a guess stands iff it is right.

    Attributes:
        busy_ticks: how long it worked in all.
    """

    def __init__(self, world: World, draft: DraftModel) -> None:
        self._world, self._draft = world, draft
        self._gathered: list[Extend | Proceed] = []
        self._latest: dict[int, tuple[int, bool]] = {}  # what followed a block, as Target has it
        self._free_at = 0
        self.busy_ticks = 0

    def arrive(self, message: Message) -> None:
        """Begin the work that a message asks for, after what was asked before."""
        world = self._world
        if isinstance(message, Close):
            world.tell(Closed("target", message.request, 1))
            self._latest.pop(message.request, None)
        elif isinstance(message, Extend | Proceed):
            self._gathered.append(message)
            if not message.more:
                messages, self._gathered = self._gathered, []
                self._begin([self._settled(each) for each in messages])

    def _settled(self, message: Extend | Proceed) -> Extend:
        """What is to be done. What becomes of a block is known here before it is judged."""
        if isinstance(message, Proceed):
            position, whole = self._latest[message.request]
            message = message.after(position, RIGHT, whole=whole)
        if message.judges:
            accepted = _accepted(message)
            whole = accepted == len(message.judged)
            self._latest[message.request] = message.verify_from + accepted, whole
        return message

    def _begin(self, extends: list[Extend]) -> None:
        world = self._world
        seconds = world.hardware.pass_seconds(sum(len(extend.tokens) for extend in extends))
        if self._draft.busy:
            seconds *= 1 + world.hardware.contention
        began = max(world.now, self._free_at)
        self._free_at = began + world.duration(seconds)
        self.busy_ticks += self._free_at - began
        world.at(self._free_at, PASS_ENDS, self._end, extends, began)

    def _end(self, extends: list[Extend], began: int) -> None:
        for extend in extends:
            self._world.tell(self._answer(extend, began * TICK_S, self._world.now * TICK_S))

    def _answer(self, extend: Extend, begun: float, ended: float) -> Verdict | Progress:
        request, extend_id = extend.request, extend.extend_id
        if not extend.judges:
            end = extend.start + len(extend.tokens)
            return Progress(request, 1, extend_id, end, begun, ended)
        return Verdict(request, 1, extend_id, _accepted(extend), RIGHT, begun, ended, 0.0)


def _accepted(extend: Extend) -> int:
    """How many guesses stand."""
    return next((i for i, token in enumerate(extend.judged) if token != RIGHT), len(extend.judged))
