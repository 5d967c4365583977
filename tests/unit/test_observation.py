"""What a policy hears from the coordinator and says to it: pauses, fates, durations."""

from collections.abc import Sequence
from typing import Any

import pytest

from specpipe.coordinator import Coordinator
from specpipe.dispatch import Unlearned
from specpipe.events import StartTimer, TimerFired
from specpipe.messages import Submit
from specpipe.policy import Decision, Judged, Situation, Verified
from specpipe.worker_messages import Block, Commit, Exhausted, Opened, Ready, Verdict
from tests.toys import sampling
from tests.unit.test_coordinator import GREEDY, PROMPT, Desk


class Scripted(Unlearned):
    """Says what it was told to, and remembers what it was asked and what it heard."""

    def __init__(self, *decisions: Decision) -> None:
        self.decisions = list(decisions)
        self.asked: list[Situation] = []
        self.heard: list[Any] = []

    def decide(self, situation: Situation) -> Decision:
        self.asked.append(situation)
        return self.decisions.pop(0) if self.decisions else Decision(0)

    def drafted(self, seconds: float) -> None:
        self.heard.append(("drafted", seconds))

    def restarted(self, seconds: float, given_up: tuple[float, float] | None) -> None:
        self.heard.append(("restarted", seconds, given_up))

    def verified(self, verification: Verified) -> None:
        self.heard.append(verification)

    def judged(self, guesses: Sequence[Judged]) -> None:
        self.heard += [(guess.position, guess.offset, guess.right) for guess in guesses]


def test_a_draft_that_is_being_opened_is_not_paused() -> None:
    """It would say `exhausted` and never `opened`: a rule that waits for that never speculates."""
    desk = Desk(Scripted(Decision(0, 0), Decision(0, 0)))
    assert desk.sequence.limits == (22, 22)
    desk.verdict(0, 1)
    (commit,) = desk.sent(Commit)
    assert commit.rest_at == 3 + 19


def test_a_pause_and_its_end_reach_the_draft_without_tokens() -> None:
    """A limit that travels with the next commit only comes when the step has begun."""
    desk = Desk(Scripted(Decision(0), Decision(None, 2), Decision(None, 0), Decision(1)))
    desk.tell(Opened(0, 1))
    desk.verdict(0, 1)  # four are committed now
    assert [commit.rest_at for commit in desk.sent(Commit)] == [6]
    desk.block(4, 2, serial=2)
    (pause,) = desk.sent(Commit)
    assert (pause.start, pause.tokens, pause.rest_at) == (4, (), 5)
    desk.tell(Exhausted(0, 1, desk.sequence.serial, "limit"))
    assert not desk.policy.asked[-1].may_wait
    (goes_on,) = desk.sent(Commit)
    assert (goes_on.tokens, goes_on.rest_at) == ((), 3 + 19)
    assert goes_on.first_serial == goes_on.last_serial == desk.sequence.serial
    desk.block(5, 3, serial=2)  # made before it heard of the pause
    assert desk.sequence.chain() == [*PROMPT, 1, 2, 3], "a pause must not outdate what was made"


def test_a_kept_promise_ends_its_timer() -> None:
    """Waiting for seven tokens takes seven steps; one timer for all would end it after a second."""
    desk = Desk(Scripted(Decision(0), *[Decision(None)] * 9))
    desk.tell(Opened(0, 1))
    desk.verdict(0, 1)
    (first,) = desk.sent(StartTimer)
    desk.block(4, 2, serial=2)
    timers = [timer.timer for timer in desk.sent(StartTimer)]
    assert len(timers) == 1
    assert timers != [first.timer]
    assert desk.tell(TimerFired(0, first.timer)) == []


def test_what_became_of_guesses_is_told_once_and_right() -> None:
    """A policy that learns from guesses behind a wrong one learns nonsense."""
    desk = Desk(Scripted(Decision(0), Decision(2), Decision(0)))
    desk.tell(Opened(0, 1))
    desk.block(3, 1, 2, 3, 4)
    desk.verdict(0, 1)
    assert desk.policy.heard == [Verified(0, 0, 0, 0.0, alone=False), (3, 0, True)][1:]
    desk.policy.heard.clear()
    desk.block(7, 4)
    desk.verdict(1, 4)  # 2 stands, 4 instead of 3
    told = [what for what in desk.policy.heard if isinstance(what, tuple) and len(what) == 3]
    assert told == [(4, 1, True), (5, 2, False), (6, 3, None), (7, 4, None)]
    desk.block(6, 1, serial=desk.sequence.serial)
    assert desk.sequence.waiting[0].offset == 0, "the draft has begun anew"


def test_hidden_values_tell_nothing_beyond_the_block() -> None:
    """Under the rejection rule, a guess that equals the bonus token need not have been accepted."""
    desk = Desk(Scripted(Decision(0), Decision(1), Decision(0)))
    desk.sequence.sampling = sampling(1.0, acceptance="rejection")
    desk.tell(Opened(0, 1))
    desk.block(3, 1, 2, 3)
    desk.verdict(0, 1)
    desk.policy.heard.clear()
    desk.verdict(1, 3)  # 2 stands; the bonus token is 3, as guessed
    told = [what for what in desk.policy.heard if type(what) is tuple]
    assert told == [(4, 1, True), (5, 2, None)]


def test_how_long_things_took_is_told_in_the_coordinators_own_time() -> None:
    """Costs that are measured wrong make the best rule wrong, and nothing else shows it."""
    policy = Scripted(Decision(0), Decision(1), Decision(0))
    machine = Coordinator(policy)
    for role in ("draft", "target"):
        machine.handle(Ready(role, 1, 1, 100, 5, "cpu", (), ("model",)), 0.0)
    machine.handle(Submit(0, PROMPT, 20, GREEDY), 0.0)
    extend = machine.sequences[0].extend
    assert extend is not None
    machine.handle(Opened(0, 1), 1.0)
    machine.handle(Block(0, 1, 1, 3, (1,), (0.5,), ("model",), (0.5,), (1.0,)), 1.0)
    machine.handle(Block(0, 1, 1, 4, (2,), (0.5,), ("model",), (1.0,), (1.9,)), 2.0)
    assert policy.heard == [("drafted", 1.0)]
    machine.handle(Verdict(0, 1, extend.extend_id, 0, 1, 0.0, 3.5, 0.0), 3.5)
    policy.heard.clear()
    extend = machine.sequences[0].extend
    assert extend is not None
    machine.handle(Verdict(0, 1, extend.extend_id, 0, 4, 3.5, 7.0, 0.0), 7.5)
    assert policy.heard[0] == Verified(0, 1, 0, 4.0, alone=False, rows=2, worked=3.5)
    policy.heard.clear()
    # The step that began at 6.9 was given up at 7.8; the first token on the new chain came at 9.
    machine.handle(Block(0, 1, 3, 5, (1,), (0.5,), ("model",), (6.9, 7.8), (7.8, 8.8)), 9.0)
    ((what, seconds, given_up),) = policy.heard
    assert (what, seconds) == ("restarted", 1.5)
    assert given_up == pytest.approx((0.6, 0.3))
