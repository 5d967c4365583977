"""Signs of life: what a worker counts, and what is made of it."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from specpipe.models.interface import Feed, Interrupted, Logits
from specpipe.pulse import Pulse, Reading, Watched
from specpipe.vigil import Vigil
from tests.toys import DraftLaw, TargetLaw, ToyModel


class Clock:
    """Moves by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(ToyModel):
    """Takes a tenth of a second a token, and reads its own pulse on the way."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(DraftLaw(TargetLaw(7), 100), num_slots=2)
        self.clock = clock
        self.look: Callable[[], Any] = lambda: None

    def forward(
        self, slot: int, tokens: Sequence[int], rows: int, interrupted: Interrupted = None
    ) -> Logits | None:
        self.look()
        self.clock.now += len(tokens) / 10
        return super().forward(slot, tokens, rows, interrupted)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pulse(clock: Clock) -> Pulse:
    return Pulse(clock)


@pytest.fixture
def model(clock: Clock) -> Slow:
    return Slow(clock)


def test_a_pass_is_expected_to_take_what_so_many_tokens_took(
    clock: Clock, pulse: Pulse, model: Slow
) -> None:
    """A first long prompt, which takes longer than anything before it, is no reason to worry."""
    watched, seen = Watched(model, pulse), list[Reading]()
    pulse.rest()
    watched.forward(watched.open(), [1] * 4, 1)
    model.look = lambda: seen.append(pulse.read())
    watched.forward(0, [1] * 40, 1)
    assert seen[0].expected_s == pytest.approx(4.0)
    watched.forward_all([Feed(0, [1], 1), Feed(watched.open(), [1], 1)])
    assert seen[1].expected_s == pytest.approx(0.4), "no pass has been shorter yet"
    clock.now += 100  # it was stopped
    watched.forward(0, [1], 1)
    watched.forward(0, [1] * 10, 1)
    assert seen[-1].expected_s == pytest.approx(1.0), "the best that it took counts"
    assert pulse.read().expected_s == 0.0


def test_questions_during_a_pass_are_steps_and_a_dropped_pass_tells_nothing(
    pulse: Pulse, model: Slow
) -> None:
    """A pass that ended early would make all others look late."""
    watched, beats = Watched(model, pulse), list[int]()
    pulse.rest()

    def interrupted() -> bool:
        beats.append(pulse.read().beats)
        return True

    assert watched.forward(watched.open(), [1] * 4, 1, interrupted) is None
    assert beats == [2], "the pass began, and asked whether it was wanted"
    seen: list[Reading] = []
    model.look = lambda: seen.append(pulse.read())
    watched.forward(0, [1] * 4, 1)
    assert seen[0].expected_s == 0.0


def test_what_comes_before_the_first_rest_is_no_work(pulse: Pulse, model: Slow) -> None:
    """Kernels are compiled in the first pass, which takes as long as it takes."""
    seen: list[Reading] = []
    model.look = lambda: seen.append(pulse.read())
    Watched(model, pulse).forward(model.open(), [1], 1)
    assert seen[0].resting
    pulse.rest()
    pulse.beat()
    assert not pulse.read().resting


# -- what is made of it


def reading(beats: int = 0, *, resting: bool = False, expected_s: float = 0.0) -> Reading:
    return Reading(beats, beats, resting, expected_s)


@pytest.fixture
def vigil() -> Vigil:
    return Vigil(10.0)


Says = Callable[[float], Reading | None]
LIVES: dict[str, tuple[Says, str | None]] = {
    "works": (lambda now: reading(int(now)), None),
    "rests for hours": (lambda now: reading(resting=True), None),
    "is stopped": (lambda now: reading(int(now)) if now < 5 else None, "nothing for 10."),
    "is stopped at rest": (lambda now: reading(resting=True) if now < 5 else None, "nothing"),
    "hangs in a pass": (lambda now: reading(min(5, int(now)), expected_s=0.4), "still for 10."),
    "is slow in a long pass": (lambda now: reading(int(now / 90), expected_s=5.0), None),
    "hangs in a long pass": (lambda now: reading(expected_s=5.0), "still for 100."),
    "never started": (lambda now: None, None),
}


@pytest.mark.parametrize("life", LIVES)
def test_a_worker_that_hangs_is_told_from_one_that_is_slow(vigil: Vigil, life: str) -> None:
    """One that hangs holds everybody up for ever; one that is slow is killed again and again."""
    says, expected = LIVES[life]
    for tenth in range(3000):
        now = tenth / 10
        if (said := says(now)) is not None:
            vigil.hear(said, now)
        if trouble := vigil.trouble(now):
            break
    assert (trouble is None) == (expected is None), trouble
    assert expected is None or expected in str(trouble)


def test_work_counts_once_something_came_of_it(vigil: Vigil) -> None:
    """Who gets nothing done is not restarted for ever."""
    assert not vigil.has_worked
    vigil.hear(Reading(7, 0, False, 0.0), 1.0)
    assert not vigil.has_worked
    vigil.hear(Reading(9, 1, False, 0.0), 1.0)
    assert vigil.has_worked
