"""Does the machinery work on this machine? A tiny random pair at work, in about a second.

The real decoder, workers, coordinator and sockets; only the weights are made up, and all runs in
one process. What the pipeline writes must be what its target writes token by token.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from specpipe.channel import Channel, socket_directory, worker_address
from specpipe.coordinator import Coordinator
from specpipe.dispatch import make_policy
from specpipe.drafting.drafter import Sources
from specpipe.errors import SpecpipeError
from specpipe.events import Command, Event, Send, StartTimer, TimerFired
from specpipe.messages import Finish, Message, Submit, Tokens
from specpipe.metrics import RequestMetrics
from specpipe.models.interface import SequenceModel
from specpipe.sampler import Sampler
from specpipe.sampling import Sampling
from specpipe.worker_messages import Extend, Ready
from specpipe.workers.draft import Draft
from specpipe.workers.target import Target

TEMPERATURES = (0.0, 1.0)
PROMPT = (1, 2, 3, 5, 8, 13, 21)
TOKENS = 48
"""Length of each answer."""

_STEPS_DURING_A_PASS = 3
_MOST_TURNS = 10_000
_ROUND_TRIPS = 100
_ANSWER_WITHIN_S = 5.0


class SelfTestError(SpecpipeError):
    """Something does not work as it must; one line says what."""


@dataclass(frozen=True, slots=True)
class Passed:
    """What a self-test saw.

    Attributes:
        tokens: written and found equal, of all answers together.
        sent, accepted: guesses that were judged, and that stood.
        seconds: that it took.
        round_trip_s: of a message there and back, the median.
    """

    tokens: int
    sent: int
    accepted: int
    seconds: float
    round_trip_s: float


def self_test() -> Passed:
    """Run the test.

    Raises:
        SelfTestError: naming what differs from what it must be.
    """
    begun = time.monotonic()
    sent, accepted = check_pipeline()
    round_trip = check_channel()
    tokens = TOKENS * len(TEMPERATURES)
    return Passed(tokens, sent, accepted, time.monotonic() - begun, round_trip)


def check_pipeline() -> tuple[int, int]:
    """Hold a pipeline against its target alone; how many guesses were judged, and how many stood.

    Raises:
        SelfTestError: if they differ, or if what stood is past belief.
    """
    from specpipe.models import tiny  # noqa: PLC0415 (its kernels take a second to compile)

    sent = accepted = 0
    for temperature in TEMPERATURES:
        target, draft = tiny.make_pair()
        sampling = Sampling(temperature, 7, 0, (), prompt_length=len(PROMPT))
        expected = decode_alone(target, sampling)
        written, metrics = _Pipeline(target, draft).write(sampling)
        _compare(written, expected, temperature)
        sent, accepted = sent + metrics.sent, accepted + metrics.accepted
    if not 0 < accepted < sent:
        raise SelfTestError(f"of {sent} guesses {accepted} stood: some must, and some must not")
    return sent, accepted


def decode_alone(model: SequenceModel, sampling: Sampling) -> list[int]:
    """The reference: one token after the other, without coordinator, block or draft."""
    sampler, tokens, slot = Sampler(sampling), list(PROMPT), model.open()
    fed: Sequence[int] = PROMPT
    while len(tokens) < len(PROMPT) + TOKENS:
        logits = model.forward(slot, fed, 1)
        assert logits is not None
        fed = [sampler.choose(logits[0], len(tokens), tokens)]
        tokens += fed
    model.close(slot)
    return tokens[len(PROMPT) :]


def check_channel() -> float:
    """Send messages through a socket, there and back; the median time of it, in seconds.

    Raises:
        SelfTestError: if one does not come back, or comes back as another.
    """
    message = Extend(1, 2, 3, PROMPT, 4, Sampling(1.0, 7, 0, ()))
    with socket_directory() as directory:
        address = worker_address(directory, "target", 1)
        ours, theirs = Channel.bind(address), Channel.connect(address)
        try:
            times = sorted(_round_trip(ours, theirs, message) for _ in range(_ROUND_TRIPS))
        finally:
            ours.close()
            theirs.close()
    return times[_ROUND_TRIPS // 2]


def _round_trip(ours: Channel, theirs: Channel, message: Message) -> float:
    begun = time.perf_counter()
    # The end that connects speaks first, as a worker does: the other may not know of it yet.
    for sender, receiver in ((theirs, ours), (ours, theirs)):
        sent = sender.send(message)
        arrived = receiver.receive(_ANSWER_WITHIN_S) if sent else []
        if arrived != [message]:
            what = "arrived as another" if arrived else "did not arrive"
            raise SelfTestError(f"a message through a Unix socket {what}")
    return time.perf_counter() - begun


def _compare(written: list[int], expected: list[int], temperature: float) -> None:
    if written != expected:
        pairs = zip(written, expected, strict=False)
        at = next((i for i, (ours, right) in enumerate(pairs) if ours != right), None)
        where = f"{len(written)} tokens" if at is None else f"another token {at}"
        raise SelfTestError(
            f"at temperature {temperature:g} the pipeline wrote {where} than its target does alone"
        )


class _Pipeline:
    """Coordinator, draft and target, taking turns in this thread."""

    def __init__(self, target: SequenceModel, draft: SequenceModel) -> None:
        self._coordinator = Coordinator(make_policy("take_all"), lookahead=8)
        self._target, self._draft = Target(target, 1), Draft(Sources(draft, lookup=True), 1)
        self._events: deque[Event] = deque()
        self._for_target: deque[Message] = deque()
        self._timers: deque[StartTimer] = deque()
        self._steps_left = 0
        self._written: list[int] = []
        self._finish: Finish | None = None
        shape = (1, target.context_length, target.vocab_size, "cpu", ())
        self._events.append(Ready("target", 1, *shape))
        self._events.append(Ready("draft", 1, *shape, self._draft.sources))

    def write(self, sampling: Sampling) -> tuple[list[int], RequestMetrics]:
        """The answer to PROMPT, and what it took.

        Raises:
            SelfTestError: if it doesn't come to its end.
        """
        self._events.append(Submit(1, PROMPT, TOKENS, sampling))
        for _ in range(_MOST_TURNS):
            if self._finish is not None and not self._for_target and not self._events:
                break
            self._turn()
        if self._finish is None:
            raise SelfTestError("the pipeline writes on without end")
        if self._finish.reason != "length":
            raise SelfTestError(
                f"the pipeline ended with {self._finish.reason!r}: {self._finish.cause}"
            )
        return self._written, self._finish.metrics

    def _turn(self) -> None:
        """The draft makes a few steps in each pass of the target, and as many as are waited for."""
        if self._events:
            for command in self._coordinator.handle(self._events.popleft(), time.monotonic()):
                self._do(command)
            self._coordinator.reflect()
        elif not self._draft.idle and (self._steps_left or not self._for_target):
            self._steps_left -= bool(self._for_target)
            self._events += self._draft.step()
        elif self._for_target:
            self._events += self._target.handle(self._for_target.popleft())
        elif self._timers:
            timer = self._timers.popleft()
            self._events.append(TimerFired(timer.request, timer.timer))
        elif self._finish is None:
            raise SelfTestError("the pipeline waits for nothing")

    def _do(self, command: Command) -> None:
        match command:
            case Send("target", _, message):
                self._for_target.append(message)
                self._steps_left = _STEPS_DURING_A_PASS
            case Send("draft", _, message):
                self._events += self._draft.handle(message)
            case StartTimer():
                self._timers.append(command)
            case Tokens():
                self._written += command.tokens
            case Finish():
                self._finish = command
