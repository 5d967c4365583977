"""Many sequences in two halves: one is prepared while the target judges the other."""

import pytest

from specpipe import sharing
from specpipe.coordinator import Coordinator
from specpipe.dispatch import Unlearned, make_policy
from specpipe.events import Command, Event, Send, StartTimer, TimerFired
from specpipe.fleet import Fleet, Request
from specpipe.messages import Extend, Lost, Ready, Submit, Verdict
from specpipe.policy import Decision, Judged, Situation, Verified
from specpipe.sharing import Sharing
from specpipe.simulated_workers import Hardware
from tests.toys import sampling

PROMPT = (1, 2, 3)


class Halves(Unlearned):
    """Sends what waits, and lets the next pass wait while the target has something to do."""

    def __init__(self, spare: float = 0.0) -> None:
        self.heard: list[Verified] = []
        self.left = spare

    def alternates(self, sequences: int) -> bool:
        return sequences >= 4

    def spare(self, rows: int, age: float) -> float:
        return self.left - age

    def verified(self, verification: Verified) -> None:
        self.heard.append(verification)

    def decide_all(self, situations: list[Situation], spare: float = 0.0) -> list[Decision]:
        waits = spare > 0
        return [Decision(None if waits else len(each.confidences)) for each in situations]


class Desk:
    """Four requests that come before the target does."""

    def __init__(self, policy: Halves) -> None:
        self.coordinator = Coordinator(policy, prefill_chunk=100)
        self.said: list[Command] = []
        for request in range(4):
            self.tell(Submit(request, PROMPT, 20, sampling()))
        self.tell(Ready("target", 1, 4, 100, 5, "cpu", ()))

    def tell(self, event: Event, now: float = 0.0) -> None:
        self.said = self.coordinator.handle(event, now)

    @property
    def sent(self) -> list[tuple[int, bool]]:
        """The requests of the extends said last, and whether more were to follow for the pass."""
        messages = [each.message for each in self.said if isinstance(each, Send)]
        return [(each.request, each.more) for each in messages if isinstance(each, Extend)]

    def verdict(self, request: int, now: float, worked: float = 1.0) -> None:
        extend = self.coordinator.sequences[request].extend
        assert extend
        self.tell(Verdict(request, 1, extend.extend_id, 0, 2, now - worked, now, 0.0), now)


def test_the_target_has_its_next_pass_before_it_has_ended_one() -> None:
    """Else it waits for draft, coordinator and channel after each, however many there are."""
    desk = Desk(Halves())
    assert desk.sent == [(0, True), (1, False), (2, True), (3, False)]
    desk.verdict(0, 1.0)
    assert desk.sent == [], "the answer to 1 is on its way, and is waited for"
    desk.verdict(1, 1.0)
    assert desk.sent == [(0, True), (1, False)]
    desk.verdict(2, 2.0)
    desk.verdict(3, 2.0)
    assert desk.sent == [(2, True), (3, False)]


def test_no_half_is_larger_than_the_other() -> None:
    """Once all were in one pass, they would stay there, and the target would wait as before."""
    policy = Halves()
    policy.alternates = lambda sequences: False  # type: ignore[method-assign]
    desk = Desk(policy)
    assert [request for request, _ in desk.sent] == [0, 1, 2, 3]
    del policy.alternates  # type: ignore[method-assign]
    sent = []
    for request in range(4):
        desk.verdict(request, 1.0)
        sent += desk.sent
    assert sent == [(0, True), (1, False), (2, True), (3, False)]


def test_a_pass_lasts_from_the_end_of_the_one_before() -> None:
    """Counted from its sending, a pass would seem to take twice as long in halves."""
    policy = Halves()
    desk = Desk(policy)
    for first, moment in ((0, 1.0), (2, 1.8), (0, 2.6), (2, 3.5)):
        for request in (first, first + 1):
            desk.verdict(request, moment, worked=0.75)
    # The first two read the prompts, which says nothing.
    assert [each.seconds for each in policy.heard] == pytest.approx([0.8, 0.8, 0.9, 0.9])
    assert [each.queued for each in policy.heard] == [True] * 4
    assert [each.waited for each in policy.heard] == [0.0] * 4
    assert [each.worked for each in policy.heard] == pytest.approx([0.75] * 4)


def test_guesses_are_waited_for_until_the_target_is_almost_free() -> None:
    """Sent at once, a half has no guesses; sent too late, the target waits after all."""
    policy = Halves(spare=0.6)
    desk = Desk(policy)
    assert [request for request, _ in desk.sent] == [0, 1]
    (timer,) = (each for each in desk.said if isinstance(each, StartTimer) and each.seconds < 1)
    assert timer.seconds == pytest.approx(0.6)
    desk.tell(TimerFired(timer.request, timer.timer), 0.61)
    assert [request for request, _ in desk.sent] == [2, 3]
    silent = [sequence.silent for sequence in desk.coordinator.sequences.values()]
    assert silent == [False] * 4, "nobody was late"


def test_a_lost_target_gets_both_passes_again() -> None:
    """What was queued died with it."""
    desk = Desk(Halves())
    desk.tell(Lost("target", 1))
    desk.tell(Ready("target", 2, 4, 100, 5, "cpu", ()))
    assert desk.sent == [(0, True), (1, False), (2, True), (3, False)]


def taught(gap: float, row: float) -> Sharing:
    """A rule that has seen passes of 8 sequences, 16 rows each, and of half as many."""
    rule = make_policy("elastic")
    rule.judged([Judged(0, i, 0, 0.8, i % 5 > 0, 0.0, 0.0) for i in range(200)])
    for rows in [8, 16] * 40:
        worked = 1 + row * rows
        rule.verified(
            Verified(0, 1, 0, worked + gap / 2, alone=False, waited=gap / 2, sequences=rows // 2,
                     rows=rows, worked=worked)
        )  # fmt: skip
    return rule._sharing


@pytest.mark.parametrize(
    ("gap", "row", "halved"), [(0.5, 0.2, False), (1.5, 0.2, True), (0.5, 0.0, False)]
)
def test_halves_are_for_where_more_lies_between_passes_than_two_take_longer(
    gap: float, row: float, halved: bool
) -> None:
    """Two passes of half of the rows cost twice what does not depend on these."""
    rule = taught(gap, row)
    assert rule.alternates(8) == halved
    assert not rule.alternates(3), "a half would be one sequence"
    assert rule.spare(16, 0.5) == pytest.approx(1 + 16 * row - 0.5 - gap, rel=0.02)


def test_what_writes_less_in_halves_goes_together() -> None:
    """A draft that has less time for its guesses may cost more than the target's waiting."""
    rule = taught(1.5, 0.2)
    chosen = []
    for turn in range(2000):
        halves = rule.alternates(8)
        rule.decide([Situation([0.8], 10, may_wait=False)] * 4, [[0.8]] * 4)
        for _ in range(4):
            rule.note(
                Verified(0, 1, int(not halves), 4.0, alone=False, sequences=4, rows=8,
                         queued=halves, worked=4.0 if halves else 2.5)
            )  # fmt: skip
        chosen.append(halves)
        assert turn < 60 or any(chosen), "they are tried"
    assert sum(chosen[1000:]) < 100


def test_a_target_far_away_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this is for: messages take a fifth of a pass, both ways."""
    hardware = Hardware(
        1.1e-3, ((1, 4.5e-3), (4, 9.8e-3), (16, 36e-3)), step_row=0.15, latency=1.5e-3, jitter=0.05
    )
    outcomes = []
    for least in (4, 1000):
        monkeypatch.setattr(sharing, "_LEAST_TO_HALVE", least)
        outcomes.append(
            Fleet(
                lambda: make_policy("elastic"), hardware, pairs=1, slots=8,
                requests=[Request(20, 100)] * 40, acceptance=0.6,
            ).run()
        )  # fmt: skip
    halves, whole = outcomes
    assert whole.steady < 0.9
    assert halves.steady > 0.95
    assert halves.tokens / halves.seconds > 1.03 * whole.tokens / whole.seconds
