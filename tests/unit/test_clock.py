"""Clocks of two hosts: what is converted is right within the bound that is stated."""

import random

import pytest

from specpipe.clock import RemoteClock
from specpipe.messages import Ping, Pong
from specpipe.worker_messages import Block, Closed, LookedUp, Progress, Verdict


class Worker:
    """A host whose clock began at another time, and runs faster or slower."""

    def __init__(self, ahead: float, drift: float, seed: int) -> None:
        self.ahead, self.drift, self.rng = ahead, drift, random.Random(seed)

    def clock(self, now: float) -> float:
        return self.ahead + now * (1 + self.drift)

    def answer(self, ping: Ping) -> tuple[Pong, float]:
        """Its answer, and when it arrives: a way there and a way back, some of them long."""
        there, back = (self.rng.choice((1e-4, 5e-4, 0.05)) * self.rng.random() for _ in "ab")
        return Pong(ping.sent, self.clock(ping.sent + there)), ping.sent + there + back


@pytest.mark.parametrize("seed", range(20))
def test_the_shift_is_within_the_stated_error_of_the_truth(seed: int) -> None:
    """A slow answer taken for a good one, or one good answer believed for a day."""
    rng = random.Random(seed)
    worker = Worker(rng.uniform(-1e6, 1e6), rng.uniform(-5e-5, 5e-5), seed)
    clock, now, errors = RemoteClock(), 1e5, []
    for _ in range(2000):
        now += rng.expovariate(1.0)
        if ping := clock.question(now):
            pong, now = worker.answer(ping)
            clock.hear(pong, now)
        truth = now - worker.clock(now)
        assert abs(clock.shift - truth) <= clock.error(now) + 1e-9
        errors.append(abs(clock.shift - truth))
    assert sorted(errors)[len(errors) // 2] < 2e-3


def test_it_asks_at_once_and_then_now_and_then() -> None:
    """A question with each message would double them."""
    clock = RemoteClock()
    asked = [moment for moment in range(100) if clock.question(float(moment))]
    assert asked == list(range(0, 100, 10))


def test_all_times_are_converted_and_nothing_else_is() -> None:
    clock = RemoteClock()
    clock.hear(Pong(10.0, 1000.0), 10.0)
    guesses = [LookedUp(9, 0.5, "ngram", at, at + 0.5) for at in (1000.0, 10.0)]
    verdict = Verdict(1, 2, 3, 1, 5, 1001.0, 1002.0, 0.25, block=(guesses[0],))
    shifted_verdict = Verdict(1, 2, 3, 1, 5, 11.0, 12.0, 0.25, block=(guesses[1],))
    assert clock.converted(verdict) == shifted_verdict
    assert clock.converted(Progress(1, 2, 3, 4, 1001.0, 1002.0)) == Progress(1, 2, 3, 4, 11.0, 12.0)
    block = Block(1, 2, 3, 4, (5,), (0.5,), ("model",), (1001.0, 1002.0), (1001.5, 1003.0))
    shifted = Block(1, 2, 3, 4, (5,), (0.5,), ("model",), (11.0, 12.0), (11.5, 13.0))
    assert clock.converted(block) == shifted
    assert clock.converted(Closed("draft", 1, 2)) == Closed("draft", 1, 2)
