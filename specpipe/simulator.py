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
from typing import Any

import numpy as np

from specpipe.coordinator import Coordinator
from specpipe.events import Send, StartTimer, TimerFired
from specpipe.messages import Finish, Submit, Tokens
from specpipe.metrics import RequestMetrics
from specpipe.policy import Observer, Policy
from specpipe.sampling import Sampling
from specpipe.simulated_workers import (
    ARRIVAL,
    RIGHT,
    TICK_S,
    DraftModel,
    Fates,
    Hardware,
    TargetModel,
    ticks,
)
from specpipe.worker_messages import Ready

PARTS = 20
"""Into so many parts a run is cut to see how much they differ."""


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


class Clock:
    """Virtual time: what is to happen, in order.

    Attributes:
        now: in ticks.
        mail: messages that arrive at this very moment, and who takes them.
    """

    def __init__(self) -> None:
        self.now = 0
        self.mail: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._events: list[tuple[int, int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0

    def at(self, moment: int, order: int, then: Callable[..., None], *args: Any) -> None:
        """Let something happen."""
        self._number += 1
        heapq.heappush(self._events, (moment, order, self._number, then, args))

    def step(self) -> None:
        """Let the next thing happen."""
        if self.mail:
            take, message = self.mail.popleft()
            take(message)
        else:
            self.now, _, _, then, args = heapq.heappop(self._events)
            then(*args)


class Replica:
    """A coordinator, a draft and a target; the World of the latter two.

    Args:
        clock: that all replicas share.
        policy: see Coordinator.
        hardware: how long things take.
        fates: from a request to which of its guesses are right.
        hear: is told what the coordinator says to its user.
        slots, context: of both workers.
        lookahead: see Coordinator.
        seed: of the jitter.
        observers: hear what the policy hears.
    """

    def __init__(
        self,
        clock: Clock,
        policy: Policy,
        hardware: Hardware,
        fates: Callable[[int], Fates],
        hear: Callable[[Tokens | Finish], None],
        *,
        slots: int,
        context: int,
        lookahead: int = 64,
        seed: int = 0,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.hardware = hardware
        self._clock, self._hear = clock, hear
        self._latency = ticks(hardware.latency)
        self._noise = np.random.default_rng(seed)
        self._coordinator = Coordinator(
            policy, lookahead=lookahead, wait_timeout_s=1e3 * hardware.step, observers=observers
        )
        self._draft = DraftModel(self, fates)
        self.target = TargetModel(self, self._draft)
        self.tell(Ready("target", 1, slots, context, 3, "virtual", ()))
        self.tell(Ready("draft", 1, slots, context - 1, 3, "virtual", (), ("model",)))

    @property
    def now(self) -> int:
        """The moment; in ticks."""
        return self._clock.now

    def at(self, moment: int, order: int, then: Callable[..., None], *args: Any) -> None:
        """Let something happen."""
        self._clock.at(moment, order, then, *args)

    def duration(self, seconds: float) -> int:
        """Ticks that something takes this time."""
        if self.hardware.jitter:
            seconds *= max(0.1, 1 + self.hardware.jitter * self._noise.standard_normal())
        return max(1, ticks(seconds))

    def tell(self, message: Any) -> None:
        """Send a message to the coordinator."""
        if self._latency:
            self.at(self.now + self._latency, ARRIVAL, self._arrive, message)
        else:
            self._arrive(message)

    def _arrive(self, message: Any) -> None:
        self._clock.mail.append((self._handle, message))

    def _handle(self, event: Any) -> None:
        for command in self._coordinator.handle(event, self.now * TICK_S):
            if isinstance(command, Send):
                worker = self.target if command.role == "target" else self._draft
                if self._latency:
                    moment = self.now + self._latency
                    self.at(moment, ARRIVAL, worker.arrive, command.message)
                else:
                    worker.arrive(command.message)
            elif isinstance(command, StartTimer):
                fired = TimerFired(command.request, command.timer)
                moment = self.now + ticks(command.seconds)
                self.at(moment, ARRIVAL, self._arrive, fired)
            else:
                self._hear(command)
        self._coordinator.reflect()


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
        self.outcome: Outcome
        self._tokens = tokens
        self._finish: Finish | None = None
        self._marks: list[float] = []
        self._clock = Clock()
        self._replica = Replica(
            self._clock,
            policy,
            hardware,
            lambda _: fates,
            self._hear,
            slots=1,
            context=tokens + 2,
            lookahead=lookahead,
            seed=seed,
            observers=observers,
        )

    def run(self) -> Outcome:
        """Play until all tokens are committed."""
        self._replica.tell(Submit(0, (RIGHT,), self._tokens, Sampling(0.0, 0, 0, ())))
        while self._finish is None:
            self._clock.step()
        seconds = self._clock.now * TICK_S
        self.outcome = Outcome(self._tokens, seconds, tuple(self._marks), self._finish.metrics)
        return self.outcome

    def _hear(self, command: Tokens | Finish) -> None:
        if isinstance(command, Finish):
            self._finish = command
            return
        written = command.start + len(command.tokens) - 1  # the prompt is one token
        while written * PARTS >= self._tokens * (len(self._marks) + 1):
            self._marks.append(self._clock.now * TICK_S)
