"""Many pipelines that share a queue of requests, on a virtual clock.

Each takes the next request whenever one of its sequences has ended, as batch jobs have it. What is
asked: do uneven lengths leave targets idle, and how long does a request take?
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specpipe.messages import Finish, Submit, Tokens
from specpipe.metrics import RequestMetrics
from specpipe.policy import Policy
from specpipe.sampling import Sampling
from specpipe.simulated_workers import RIGHT, TICK_S, Hardware
from specpipe.simulator import Clock, Replica

_DRAWN = 1 << 16  # fates are taken from so many, from another place on for each request
_STRIDE = 7919


class Request(NamedTuple):
    """A prompt of so many tokens, and how many are to be written."""

    prompt: int
    tokens: int


@dataclass(frozen=True, slots=True)
class FleetOutcome:
    """What a fleet came to.

    Attributes:
        seconds: until the last token, on the virtual clock.
        tokens: written.
        utilisation: of all targets' time until then, the share in which they worked.
        steady: the same until the queue was empty, from when on sequences only end.
        metrics: of each request, in the order of their ends.
    """

    seconds: float
    tokens: int
    utilisation: float
    steady: float
    metrics: list[RequestMetrics]


class _Fates:
    """Which guesses of one request are right."""

    def __init__(self, drawn: NDArray[np.bool_], request: int) -> None:
        self._drawn, self._offset = drawn, request * _STRIDE

    def right(self, position: int) -> bool:
        """See Fates."""
        return bool(self._drawn[(self._offset + position) % len(self._drawn)])

    def confidence(self, position: int) -> float:
        """See Fates."""
        return 0.5


class Fleet:
    """See above.

    Args:
        make_policy: makes one for each pipeline.
        hardware: of every pipeline.
        pairs: how many pipelines.
        slots: sequences that each works on at once.
        requests: in the order of their coming.
        acceptance: chance that a guess is right.
        seed: of guesses and jitter.
    """

    def __init__(
        self,
        make_policy: Callable[[], Policy],
        hardware: Hardware,
        *,
        pairs: int,
        slots: int,
        requests: Sequence[Request],
        acceptance: float,
        seed: int = 0,
    ) -> None:
        self._requests, self._next = requests, 0
        self._clock = Clock()
        self._metrics: list[RequestMetrics] = []
        self._emptied: tuple[float, int] | None = None
        drawn = np.random.default_rng(seed).random(_DRAWN) < acceptance
        context = max(request.prompt + request.tokens for request in requests) + 2
        self._replicas: list[Replica] = []
        for number in range(pairs):
            self._replicas.append(
                Replica(
                    self._clock,
                    make_policy(),
                    hardware,
                    lambda request: _Fates(drawn, request),
                    self._hearer(number),
                    slots=slots,
                    context=context,
                    seed=seed + number,
                )
            )
        for _ in range(slots):
            for number in range(pairs):
                self._submit(number)

    def run(self) -> FleetOutcome:
        """Play until all requests have ended."""
        while len(self._metrics) < len(self._requests):
            self._clock.step()
        seconds, busy = self._clock.now * TICK_S, self._busy_ticks() * TICK_S
        emptied, busy_then = self._emptied or (seconds, self._busy_ticks())
        pairs = len(self._replicas)
        return FleetOutcome(
            seconds,
            sum(each.completion_tokens for each in self._metrics),
            busy / (pairs * seconds),
            busy_then * TICK_S / (pairs * emptied),
            self._metrics,
        )

    def _hearer(self, number: int) -> Callable[[Tokens | Finish], None]:
        def hear(command: Tokens | Finish) -> None:
            if isinstance(command, Finish):
                self._metrics.append(command.metrics)
                self._submit(number)

        return hear

    def _submit(self, number: int) -> None:
        """Give a pipeline the next request, if there is one."""
        if self._next == len(self._requests):
            if self._emptied is None:
                self._emptied = (self._clock.now * TICK_S, self._busy_ticks())
            return
        request, self._next = self._next, self._next + 1
        prompt, tokens = self._requests[request]
        sampling = Sampling(0.0, 0, 0, ())
        self._replicas[number].tell(Submit(request, (RIGHT,) * prompt, tokens, sampling))

    def _busy_ticks(self) -> int:
        """How long all targets have worked in all."""
        return sum(replica.target.busy_ticks for replica in self._replicas)


def uneven_requests(count: int, *, prompt: int, tokens: int, seed: int) -> list[Request]:
    """Requests whose lengths are log-normal, as those of people are, with these medians."""
    rng = np.random.default_rng(seed)
    prompts = np.clip(rng.lognormal(np.log(prompt), 0.8, count), 1, 20 * prompt)
    lengths = np.clip(rng.lognormal(np.log(tokens), 0.8, count), 1, 20 * tokens)
    return [Request(int(p), int(n)) for p, n in zip(prompts, lengths, strict=True)]
