"""The target is told of its next pass while it is at one: what it feeds is known when it begins."""

import pytest

from specpipe import sharing
from specpipe.coordinator import Coordinator
from specpipe.dispatch import Unlearned, make_policy
from specpipe.elastic import Elastic
from specpipe.events import Command, Event, Finish, Send, StartTimer, TimerFired
from specpipe.fleet import Fleet, Request
from specpipe.messages import Lost, Submit
from specpipe.policy import Decision, Judged, Situation, Verified
from specpipe.sharing import Sharing
from specpipe.simulated_workers import Hardware
from specpipe.worker_messages import Block, Commit, Extend, Failed, Opened, Proceed, Ready, Verdict
from specpipe.workers.target import Target
from tests.toys import TargetLaw, ToyModel, decode_plain, sampling

PROMPT = (1, 2, 3)
LAW = TargetLaw(7)
TEXT = tuple(decode_plain(LAW, PROMPT, sampling(), 12)[0])
WRONG = (TEXT[0] + 1) % 5


class Ahead(Unlearned):
    """Sends what waits, and lets the next pass wait while the target has something to do."""

    def __init__(self, spare: float = 0.0) -> None:
        self.heard: list[Verified] = []
        self.asked: list[Situation] = []
        self.left = spare

    def runs_ahead(self, sequences: int) -> bool:
        return True

    def spare(self, rows: int, age: float) -> float:
        return self.left - age

    def verified(self, verification: Verified) -> None:
        self.heard.append(verification)

    def decide_all(self, situations: list[Situation], spare: float = 0.0) -> list[Decision]:
        self.asked = situations
        waits = spare > 0
        return [Decision(None if waits else len(each.confidences)) for each in situations]


class Desk:
    """Requests that come before the target does."""

    def __init__(self, policy: Ahead, count: int = 1, most: int = 20, draft: bool = True) -> None:
        self.coordinator = Coordinator(policy, prefill_chunk=100)
        self.said: list[Command] = []
        if draft:
            self.tell(Ready("draft", 1, count, 100, 5, "cpu", (), ("model",)))
        for request in range(count):
            self.tell(Submit(request, PROMPT, most, sampling()))
        for request in range(count if draft else 0):
            self.tell(Opened(request, 1))
        self.tell(Ready("target", 1, count, 100, 5, "cpu", ()))

    def tell(self, event: Event, now: float = 0.0) -> None:
        self.said = self.coordinator.handle(event, now)

    def sent(self, kind: type) -> list[object]:
        messages = [each.message for each in self.said if isinstance(each, Send)]
        return [each for each in messages if isinstance(each, kind)]

    def verdict(self, request: int, token: int, accepted: int = 0, now: float = 0.0) -> None:
        extend = self.coordinator.sequences[request].extend
        assert extend
        self.tell(Verdict(request, 1, extend.extend_id, accepted, token, now, now, 0.0), now)

    def guess(self, start: int, *tokens: int) -> None:
        count, serial = len(tokens), self.coordinator.sequences[0].serial
        times = (0.0,) * count
        sources = ("model",) * count
        self.tell(Block(0, 1, serial, start, tokens, (0.5,) * count, sources, times, times))


# -- what a Proceed comes to


@pytest.mark.parametrize(
    ("guesses", "token", "whole", "fed"),
    [
        ((), 4, True, (4,)),
        ((4, 2, 1), 4, True, (4, 2, 1)),
        ((4, 2, 1), 3, True, (3,)),
        ((4, 2, 1), 4, False, (4,)),
    ],
    ids=["no guess", "as guessed", "another token", "a guess before it fell"],
)
def test_guesses_follow_the_token_that_they_were_made_for(
    guesses: tuple[int, ...], token: int, whole: bool, fed: tuple[int, ...]
) -> None:
    """Behind a block that fell its last token may be the guessed one by chance: another place."""
    extend = Proceed(0, 7, guesses, more=True).after(9, token, whole=whole)
    assert (extend.start, extend.tokens, extend.verify_from) == (9, fed, 10)
    assert (extend.judged, extend.judges, extend.more) == (fed[1:], True, True)


@pytest.mark.parametrize("right", range(4), ids=lambda count: f"{count} of 3 right")
def test_the_target_writes_the_same_whatever_was_guessed(right: int) -> None:
    """Judged from another row, or behind an entry of a guess that fell, it writes another text."""
    target = Target(ToyModel(LAW), 1)
    guesses = (*TEXT[:right], *((token + 1) % 5 for token in TEXT[right:3]))
    (first,) = target.handle(Extend(0, 1, 0, (*PROMPT, guesses[0]), 3, sampling()))
    (second,) = target.handle(Proceed(0, 2, guesses[1:]))
    (third,) = target.handle(Proceed(0, 3))
    written: list[int] = []
    blocks = [guesses[:1], guesses[2:] if right > 1 else (), ()]
    for answer, block in zip((first, second, third), blocks, strict=True):
        assert isinstance(answer, Verdict)
        written += [*block[: answer.accepted], answer.token]
    assert tuple(written) == TEXT[: len(written)]
    assert len(written) == (3 if right == 0 else 4 if right < 3 else 5)


def test_nothing_is_answered_where_there_is_nothing_to_go_on_from() -> None:
    """A request that failed, or was closed, would come back as somebody else's."""
    target = Target(ToyModel(LAW), 1)
    assert target.handle(Proceed(5, 1)) == []
    target.handle(Extend(0, 1, 0, PROMPT, 3, sampling()))
    (failed,) = target.handle(Extend(0, 2, 99, (1,), 3, None))
    assert isinstance(failed, Failed)
    assert target.handle(Proceed(0, 3)) == []


# -- who is told, and when


def test_the_target_knows_its_next_pass_before_it_has_ended_one() -> None:
    """Else it waits for draft, coordinator and channel after each."""
    desk = Desk(Ahead(), count=2)
    assert [each.request for each in desk.sent(Extend)] == [0, 1]
    assert [(each.request, each.more) for each in desk.sent(Proceed)] == [(0, True), (1, False)]
    desk.verdict(0, TEXT[0])
    assert desk.sent(Proceed) == [], "the answer to 1 is on its way, and is waited for"
    desk.verdict(1, TEXT[0])
    assert [(each.request, each.more) for each in desk.sent(Proceed)] == [(0, True), (1, False)]


def test_without_a_draft_there_is_nothing_to_wait_for() -> None:
    """Under whatever policy: half a millisecond of each token."""

    class Idle(Ahead):
        def runs_ahead(self, sequences: int) -> bool:
            return False

    assert Desk(Idle(), draft=True).sent(Proceed) == []
    assert len(Desk(Idle(), draft=False).sent(Proceed)) == 1


def test_guesses_go_along() -> None:
    """The chain is what both sides hold it to be, or guesses are judged in another's place."""
    policy = Ahead(spare=1.0)
    desk = Desk(policy)
    sequence = desk.coordinator.sequences[0]
    desk.guess(3, *TEXT[:3])
    policy.left = 0.0
    desk.guess(6, TEXT[3])
    (proceed,) = desk.sent(Proceed)
    assert proceed.guesses == TEXT[:4]
    assert policy.asked[0].queued
    assert sequence.chain() == [*PROMPT, *TEXT[:4]]
    desk.verdict(0, TEXT[0])
    assert [guess.token for guess in sequence.in_flight] == list(TEXT[1:4])
    assert sequence.chain() == [*PROMPT, *TEXT[:4]]
    assert sequence.metrics.rollbacks == 0
    desk.verdict(0, TEXT[4], accepted=3)
    assert sequence.committed == [*PROMPT, *TEXT[:5]]
    assert sequence.metrics.accepted == 3


def test_another_token_than_guessed_drops_what_was_sent_ahead() -> None:
    """The target feeds its own token alone then; whose block is counted as judged?"""
    policy = Ahead(spare=1.0)
    desk = Desk(policy)
    sequence = desk.coordinator.sequences[0]
    policy.left = 0.0
    desk.guess(3, WRONG, 1, 2)
    desk.verdict(0, TEXT[0])
    assert sequence.chain() == [*PROMPT, TEXT[0]]
    assert sequence.in_flight == []
    assert sequence.metrics.rollbacks == 1
    desk.verdict(0, TEXT[1])
    assert sequence.committed == [*PROMPT, *TEXT[:2]]
    assert sequence.metrics.sent == 0, "nobody judged them"


def test_no_pass_is_promised_behind_the_last_token() -> None:
    """A row past the context, or a pass in vain for each request."""
    desk = Desk(Ahead(), most=2)
    assert len(desk.sent(Proceed)) == 1
    desk.verdict(0, TEXT[0])
    assert desk.sent(Proceed) == []
    desk.verdict(0, TEXT[1])
    assert any(isinstance(each, Finish) for each in desk.said)


def test_drafts_hear_each_commit_though_passes_follow_without_a_gap() -> None:
    """Two commits told as one of the second's tokens: the draft misses the first."""
    desk = Desk(Ahead())
    for i in range(4):
        desk.verdict(0, TEXT[i])
        (commit,) = desk.sent(Commit)
        assert (commit.start, commit.tokens) == (3 + i, TEXT[i : i + 1])


def test_a_pass_lasts_from_the_end_of_the_one_before() -> None:
    """Counted from its sending, a pass would seem to take twice as long."""
    policy = Ahead()
    desk = Desk(policy)
    for i, moment in enumerate((1.0, 1.8, 2.6, 3.5)):
        desk.verdict(0, TEXT[i], now=moment)
    # The first read the prompt, which says nothing.
    assert [each.seconds for each in policy.heard] == pytest.approx([0.8, 0.8, 0.9])
    assert [each.queued for each in policy.heard] == [True] * 3
    assert [each.waited for each in policy.heard] == [0.0] * 3
    assert [each.rows for each in policy.heard] == [1] * 3


def test_guesses_are_waited_for_until_the_target_is_almost_free() -> None:
    """Sent at once, a pass has no guesses; sent too late, the target waits after all."""
    policy = Ahead(spare=0.6)
    desk = Desk(policy)
    assert desk.sent(Proceed) == []
    timer = min(
        (each for each in desk.said if isinstance(each, StartTimer)), key=lambda t: t.seconds
    )
    assert timer.seconds == pytest.approx(0.6)
    desk.tell(TimerFired(timer.request, timer.timer), 0.61)
    assert len(desk.sent(Proceed)) == 1
    assert not desk.coordinator.sequences[0].silent, "nobody was late"


def test_a_lost_target_begins_with_what_is_committed() -> None:
    """What was queued died with it, and its guesses wait again."""
    policy = Ahead(spare=1.0)
    desk = Desk(policy)
    policy.left = 0.0
    desk.guess(3, *TEXT[:2])
    desk.tell(Lost("target", 1))
    policy.left = 1.0
    desk.tell(Ready("target", 2, 1, 100, 5, "cpu", ()))
    (extend,) = desk.sent(Extend)
    assert extend.start == 0
    assert extend.tokens == (*PROMPT, *TEXT[:2])


# -- whether it pays


def taught(gap: float) -> Sharing:
    """A rule that has seen passes of 8 sequences, 16 rows each."""
    rule = make_policy("elastic")
    assert isinstance(rule, Elastic)
    rule.judged([Judged(0, i, 0, 0.8, i % 5 > 0, 0.0, 0.0) for i in range(200)])
    for _ in range(40):
        rule.verified(
            Verified(0, 1, 0, 4 + gap / 2, alone=False, waited=gap / 2, sequences=8, rows=16,
                     worked=4.0)
        )  # fmt: skip
    return rule._sharing


def test_the_first_guess_costs_no_row() -> None:
    """It only says for which token the others are meant: alone it is not worth its bytes."""
    rule = taught(1.0)
    idle = Situation([0.9], 10, may_wait=False)
    queued = Situation([0.9], 10, may_wait=False, queued=True)
    more = Situation([0.9, 0.9], 10, may_wait=False, queued=True)
    blocks = [
        rule.decide([each] * 2, [each.confidences] * 2)[0].send for each in (idle, queued, more)
    ]
    assert blocks == [1, 0, 2]


@pytest.mark.parametrize("pays", [True, False])
def test_what_writes_less_ahead_is_not_done(pays: bool) -> None:
    """Guesses that come a pass later may cost more than the target's waiting."""
    rule = taught(1.5)
    chosen = []
    for _ in range(2000):
        ahead = rule.runs_ahead
        rule.decide([Situation([0.8], 10, may_wait=False)] * 4, [[0.8]] * 4)
        accepted = int(pays or not ahead)
        for _ in range(4):
            rule.note(
                Verified(0, 1, accepted, 4.0 if ahead else 5.5, alone=False, sequences=4, rows=8,
                         queued=ahead, worked=4.0)
            )  # fmt: skip
        chosen.append(ahead)
    assert any(chosen[:100])
    share = sum(chosen[1000:]) / 1000
    assert share > 0.9 if pays else share < 0.1
    if pays:
        assert chosen[:160].count(False) < 10, "what is clearly worse is given up early"


def test_a_single_sequence_runs_ahead_where_no_word_is_awaited() -> None:
    """In a text that nobody can guess the target would idle after each token, for nothing."""
    rule = Elastic()
    rule.decide(Situation([], 10, may_wait=False, free_guesses=True))
    assert not rule.runs_ahead(1)
    for _ in range(20):
        rule.verified(Verified(0, 0, 0, 0.004, alone=True, waited=0.0005))
        rule.verified(Verified(0, 0, 0, 0.004, alone=True, waited=0.0015, awaited=True))
    assert rule.runs_ahead(1)


def test_a_model_that_rests_keeps_no_target_waiting() -> None:
    """No word comes of a resting model that is all there is; the target waited for it all the same:
    on a GPU a pair whose model rested wrote at 0.6 of the target's own speed.
    """
    rule = Elastic()
    ahead, rested = [], 0
    for _ in range(400):
        decision = rule.decide(Situation([0.5], 10, may_wait=False))
        rests = decision.ahead == 0
        rested += rests
        ahead.append(rule.runs_ahead(1) == rests)
        rule.drafted(0.004)
        rule.verified(Verified(0, int(not rests), 0, 0.004 if rests else 0.006, alone=rests))
        rule.judged([] if rests else [Judged(0, 0, 0, 0.5, False, 0.0, 0.0)])
        rule.reflect()
    assert rested > 200
    assert all(ahead)


def test_a_target_far_away_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this is for: messages take a fifth of a pass, both ways."""
    hardware = Hardware(
        1.1e-3, ((1, 4.5e-3), (4, 9.8e-3), (16, 36e-3)), step_row=0.15, latency=1.5e-3, jitter=0.05
    )
    outcomes = []
    for wanted in (True, False):
        if not wanted:
            monkeypatch.setattr(sharing.Sharing, "runs_ahead", False)
        outcomes.append(
            Fleet(
                lambda: make_policy("elastic"), hardware, pairs=1, slots=8,
                requests=[Request(20, 100)] * 40, acceptance=0.6,
            ).run()
        )  # fmt: skip
    ahead, waiting = outcomes
    assert waiting.steady < 0.9
    assert ahead.steady > 0.97
    assert ahead.tokens / ahead.seconds > 1.05 * waiting.tokens / waiting.seconds
