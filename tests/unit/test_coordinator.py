"""The coordinator's side of the protocol: known traps that random schedules rarely step into."""

from typing import Any, TypeVar

import pytest

from specpipe.coordinator import Coordinator
from specpipe.dispatch import Serial, TakeAll, Unlearned
from specpipe.events import Command, Event, Send, StartTimer, TimerFired
from specpipe.messages import Abort, Finish, Gone, Lost, Submit, Tokens
from specpipe.metrics import Source
from specpipe.observation import situation
from specpipe.pace import DraftState
from specpipe.policy import Decision, Policy, Situation, Verified
from specpipe.sampling import GuessLaw
from specpipe.sequence import MOST_LOSSES
from specpipe.step import Drafted
from specpipe.worker_messages import (
    Block,
    Close,
    Closed,
    Commit,
    Computing,
    Exhausted,
    Extend,
    Failed,
    Open,
    Opened,
    Proceed,
    Progress,
    Ready,
    Resync,
    Role,
    Verdict,
)
from specpipe.worker_state import Pass
from tests.toys import sampling

GREEDY = sampling()


class TakeWaiting(Unlearned):
    """Sends what waits, and never waits itself."""

    def decide(self, situation: Situation) -> Decision:
        return Decision(min(len(situation.confidences), situation.largest_block))


PROMPT = (1, 2, 3)
M = TypeVar("M")


class Desk:
    """A coordinator with both workers ready and request 0 submitted; what it said last."""

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        draft: bool = True,
        slots: int = 1,
        sources: tuple[Source, ...] = ("model",),
        taking_turns: bool = False,
    ) -> None:
        self.sources = sources
        self.policy: Any = policy or TakeAll()
        self.coordinator = Coordinator(self.policy, prefill_chunk=8, taking_turns=taking_turns)
        self.said: list[Command] = []
        self._slots = slots
        self.ready("target", 1)
        if draft:
            self.ready("draft", 1)
        self.tell(Submit(0, PROMPT, 20, GREEDY))

    @property
    def sequence(self) -> Any:
        return self.coordinator.sequences[0]

    def ready(self, role: Role, incarnation: int) -> None:
        self.tell(Ready(role, incarnation, self._slots, 100, 5, "cpu", (), self.sources))

    def tell(self, event: Event) -> list[Command]:
        self.said = self.coordinator.handle(event, 0.0)
        return self.said

    def sent(self, kind: type[M]) -> list[M]:
        """The commands of a kind among those said last."""
        messages = [c.message if isinstance(c, Send) else c for c in self.said]
        return [message for message in messages if isinstance(message, kind)]

    def block(self, start: int, *tokens: int, serial: int = 1, incarnation: int = 1) -> None:
        times = (0.0,) * len(tokens)
        sources, confidences = ("model",) * len(tokens), (0.5,) * len(tokens)
        self.tell(Block(0, incarnation, serial, start, tokens, confidences, sources, times, times))

    def verdict(self, accepted: int, token: int, incarnation: int = 1) -> Verdict:
        """Answer the extend in flight."""
        verdict = Verdict(0, incarnation, self.sequence.extend.extend_id, accepted, token, 0, 0, 0)
        self.tell(verdict)
        return verdict


def test_block_of_an_abandoned_chain_is_dropped() -> None:
    """Late guesses from p+1 on fit both the old chain and the new: only the fence tells."""
    desk = Desk()
    desk.block(3, 1, 1)
    assert desk.sequence.extend.tokens == PROMPT  # sent before: a plain step
    desk.verdict(0, 2)  # contradicts the first guess
    assert desk.sequence.committed == [1, 2, 3, 2]
    desk.block(4, 4, serial=1)  # continues the guess that was wrong
    assert desk.sequence.chain() == [1, 2, 3, 2]
    assert desk.sequence.metrics.stale_blocks == 1
    desk.block(4, 3, serial=desk.sequence.serial)
    assert desk.sequence.chain() == [1, 2, 3, 2, 3]


def test_commit_carries_all_its_tokens() -> None:
    """A commit without the accepted ones would leave the draft with nothing to compare."""
    desk = Desk()
    desk.block(3, 1)
    desk.verdict(0, 1)
    desk.block(4, 2, 4)
    desk.verdict(0, 2)
    desk.verdict(1, 3)  # 4 accepted, 3 the bonus
    (commit,) = desk.sent(Commit)
    assert (commit.start, commit.tokens) == (5, (4, 3))
    assert (commit.first_serial, commit.last_serial) == (4, 4)
    assert desk.sequence.metrics.rollbacks == 0


def test_target_hears_first_and_user_last() -> None:
    """An idle target waiting behind somebody's text."""
    desk = Desk()
    desk.block(3, 1, 1)
    desk.verdict(0, 1)
    kinds = [type(c.message) if isinstance(c, Send) else type(c) for c in desk.said]
    assert kinds == [Extend, Commit, Tokens]


def test_late_or_doubled_verdict_is_ignored() -> None:
    """A verdict applied twice commits its tokens twice."""
    desk = Desk()
    first = desk.verdict(0, 1)
    desk.tell(first)
    assert desk.said == []
    desk.tell(TimerFired(0, -1))
    assert desk.sequence.committed == [*PROMPT, 1]


def test_extend_in_flight_is_answered_by_its_id_only() -> None:
    """A doubled progress would move the target's length ahead of its cache."""
    desk = Desk(draft=False)
    desk.tell(Abort(0))
    desk.tell(Closed("target", 0, 1))
    desk.tell(Submit(1, tuple([1] * 30), 5, GREEDY))
    first, second = desk.sent(Extend)
    progress = Progress(1, 1, first.extend_id, 8, 0.0, 0.0)
    desk.tell(progress)
    (third,) = desk.sent(Extend)
    assert [(each.start, len(each.tokens)) for each in (second, third)] == [(8, 8), (16, 8)]
    assert (first.sampling, second.sampling) == (GREEDY, None), "it is told once"
    assert desk.tell(progress) == []
    assert desk.coordinator.sequences[1].target_length == 8


def test_tokens_in_flight_return_to_waiting_when_the_target_is_lost() -> None:
    """Tokens that vanish with the target leave a gap that the draft never fills."""
    desk = Desk()
    desk.tell(Opened(0, 1))
    desk.block(3, 1)
    desk.verdict(0, 1)
    desk.block(4, 2, 3)
    old = desk.sequence.extend
    assert old.tokens == (1, 2, 3)
    desk.block(6, 4)
    chain = desk.sequence.chain()
    desk.tell(Lost("target", 1))
    assert desk.sequence.chain() == chain
    assert [d.token for d in desk.sequence.waiting] == [2, 3, 4]
    assert desk.sequence.metrics.sent == 0
    desk.ready("target", 2)
    (extend,) = desk.sent(Extend)
    assert (extend.start, extend.tokens, extend.verify_from) == (0, tuple(chain), 4)
    assert extend.sampling == GREEDY, "it begins anew, and knows nothing of the request"
    assert extend.extend_id > old.extend_id
    assert desk.tell(Verdict(0, 1, old.extend_id, 2, 4, 0.0, 0.0, 0.0)) == []
    assert desk.tell(Verdict(0, 2, old.extend_id, 2, 4, 0.0, 0.0, 0.0)) == []


def test_models_that_share_cores_read_a_prompt_one_after_the_other() -> None:
    """Two teams of spinning threads on the same cores take several times as long as in turn."""
    desk = Desk(Serial(2), taking_turns=True)
    assert desk.sent(Extend)
    assert not desk.sent(Open)
    desk.verdict(0, 4)
    assert desk.sent(Open)
    assert not desk.sent(Extend), "the target works while the draft reads"
    desk.tell(Opened(0, 1))
    desk.block(4, 1, serial=desk.sequence.serial)
    assert not desk.sent(Extend), "serial:2 waits for a second guess"
    desk.block(5, 1, serial=desk.sequence.serial)
    assert desk.sent(Extend)


def test_a_draft_that_never_ends_reading_does_not_stop_the_target() -> None:
    """It hangs, and the request with it."""
    desk = Desk(Serial(2), taking_turns=True)
    desk.verdict(0, 4)
    (timer,) = desk.sent(StartTimer)
    desk.tell(TimerFired(0, timer.timer))
    assert desk.sent(Extend)


def test_another_policy_decides_and_hears_from_its_choice_on() -> None:
    """What one rule does would be learned by the other, and measured as its own."""
    heard: list[str] = []

    class Listener(TakeWaiting):
        def __init__(self, name: str) -> None:
            self.name = name

        def verified(self, verification: Verified) -> None:
            heard.append(self.name)

    first, second = Listener("first"), Listener("second")
    desk = Desk(first)
    desk.verdict(0, 4)
    desk.coordinator.use_policy(second)
    desk.verdict(0, 4)
    desk.coordinator.use_policy(first)
    desk.verdict(0, 4)
    assert heard == ["second", "first"], "a pass that read the prompt too is told to nobody"


def test_no_work_for_a_worker_whose_end_was_told_before_its_beginning() -> None:
    """Lost comes from the supervisor, Ready from the worker: either may come first."""
    desk = Desk()
    desk.tell(Lost("target", 1))
    desk.tell(Lost("target", 2))
    desk.ready("target", 2)
    assert desk.said == []
    assert not desk.coordinator.workers["target"].up
    desk.tell(Lost("target", 1))  # doubled
    desk.ready("target", 3)
    assert desk.sent(Extend)


def test_messages_of_a_former_incarnation_change_nothing() -> None:
    """Above all: a dead draft's failure, or its resync, is not that of the one that took over."""
    desk = Desk()
    extend_id = desk.sequence.extend.extend_id
    desk.tell(Lost("draft", 1))
    desk.ready("draft", 2)
    desk.ready("target", 2)
    before = repr(desk.coordinator.sequences)
    messages: list[Event] = [
        Opened(0, 1),
        Block(0, 1, 9, 3, (1,), (0.5,), ("model",), (0.0,), (0.0,)),
        Exhausted(0, 1, 9, "limit"),
        Resync(0, 1),
        Failed("draft", 0, 1, "out of memory"),
        Failed("target", 0, 1, "out of memory"),
        Closed("draft", 0, 1),
        Closed("target", 0, 1),
        Verdict(0, 1, extend_id, 0, 1, 0.0, 0.0, 0.0),
        Verdict(0, 1, desk.sequence.extend.extend_id, 0, 1, 0.0, 0.0, 0.0),
        Progress(0, 1, desk.sequence.extend.extend_id, 3, 0.0, 0.0),
        Ready("draft", 1, 9, 9, 9, "cpu", ()),
        Lost("draft", 1),
        Lost("target", 1),
    ]
    for message in messages:
        assert desk.tell(message) == [], message
        assert repr(desk.coordinator.sequences) == before, message
    assert desk.coordinator.workers["draft"].held == {0}
    assert desk.coordinator.workers["target"].held == {0}


def test_target_does_not_wait_for_a_draft_that_is_exhausted() -> None:
    """Waiting for a draft that can't go on ends with a timer each time; a commit frees it."""
    desk = Desk()
    desk.tell(Opened(0, 1))
    desk.tell(Exhausted(0, 1, 1, "stop"))
    desk.verdict(0, 4)
    assert desk.sent(StartTimer), "after a commit the draft may go on"
    desk.tell(Exhausted(0, 1, 1, "stop"))  # doubled: said before it saw the commit
    assert desk.said == []
    desk.tell(Exhausted(0, 1, 2, "limit"))
    (extend,) = desk.sent(Extend)
    assert extend.tokens == (4,)


def test_no_second_wait_for_a_draft_that_says_nothing() -> None:
    """A draft that hangs would cost a time-out for each token until it is found out."""
    desk = Desk()
    desk.tell(Opened(0, 1))
    desk.verdict(0, 4)
    (timer,) = desk.sent(StartTimer)
    desk.tell(TimerFired(0, timer.timer))
    (extend,) = desk.sent(Extend)
    assert extend.tokens == (4,)
    assert desk.sequence.metrics.timeouts == 1
    assert desk.tell(TimerFired(0, timer.timer)) == []
    desk.verdict(0, 4)
    assert desk.sent(Extend), "it has said nothing since"
    assert not desk.sent(StartTimer)
    desk.block(4, 1, serial=2)  # late, and of no use, but a word
    desk.verdict(0, 4)
    assert desk.sent(StartTimer), "it speaks, so it is waited for again"


def test_a_request_over_which_the_target_dies_again_and_again_ends_with_its_text() -> None:
    """A prompt that kills its worker would have it restarted for ever, and everybody wait."""
    desk = Desk(draft=False)
    desk.verdict(0, 4)
    for incarnation in range(2, 2 + MOST_LOSSES):
        desk.tell(Lost("target", incarnation - 1, "out of memory"))
        desk.ready("target", incarnation)
        assert desk.sent(Extend)
    desk.tell(Submit(1, PROMPT, 20, GREEDY))
    desk.tell(Lost("target", incarnation, "out of memory"))
    (finish,) = desk.sent(Finish)
    assert (finish.request, finish.reason) == (0, "error")
    assert f"{MOST_LOSSES + 1} times in a row" in finish.cause
    assert "out of memory" in finish.cause
    assert finish.metrics.completion_tokens == 1
    desk.ready("target", incarnation + 1)
    (extend,) = desk.sent(Extend)
    assert extend.request == 1, "who waited for a slot meanwhile had no part in it"


def test_losses_between_which_a_request_gets_on_are_no_reason_to_give_it_up() -> None:
    """A machine on which something dies now and then."""
    desk = Desk(draft=False)
    for incarnation in range(1, 3 + MOST_LOSSES):
        extend_id = desk.sequence.extend.extend_id
        desk.tell(Verdict(0, incarnation, extend_id, 0, 4, 0.0, 0.0, 0.0))
        assert desk.sent(Tokens)
        desk.tell(Lost("target", incarnation))
        assert not desk.sent(Finish)
        desk.ready("target", incarnation + 1)


def test_a_request_over_which_the_draft_dies_again_and_again_goes_on_without_it() -> None:
    """Each new draft would be killed by the same tokens, and others would never have one."""
    desk = Desk()
    for incarnation in range(2, 3 + MOST_LOSSES):
        assert desk.sent(Open)
        desk.tell(Lost("draft", incarnation - 1))
        desk.ready("draft", incarnation)
    assert desk.sent(Open) == []
    desk.verdict(0, 4)
    assert desk.sent(Proceed)


@pytest.mark.parametrize("loss", ["lost", "failed", "aborted"])
def test_target_goes_on_alone_when_the_draft_it_waits_for_is_gone(loss: str) -> None:
    """A wait that nobody ends before its timer."""
    desk = Desk()
    desk.tell(Opened(0, 1))
    desk.verdict(0, 4)
    assert desk.sent(StartTimer)
    if loss == "aborted":
        desk.tell(Abort(0))
        assert len(desk.sent(Close)) == 2
        assert [finish.reason for finish in desk.sent(Finish)] == ["abort"]
        return
    failed = Failed("draft", 0, 1, "out of memory")
    desk.tell(Lost("draft", 1) if loss == "lost" else failed)
    assert desk.sent(Extend)


def test_request_that_the_draft_fails_on_is_not_opened_again() -> None:
    """The same prompt would fail again, and again."""
    desk = Desk()
    desk.tell(Failed("draft", 0, 1, "out of memory"))
    desk.ready("draft", 2)
    assert desk.sent(Open) == []
    assert desk.sequence.draft is DraftState.FAILED


def test_draft_that_failed_is_told_to_close() -> None:
    """An open that crosses its word would leave it drafting, with a slot, for nobody."""
    desk = Desk()
    desk.tell(Resync(0, 1))
    desk.tell(Failed("draft", 0, 1, "out of memory"))
    assert desk.sent(Close) == [Close(0)]
    desk.tell(Closed("draft", 0, 1))
    assert desk.coordinator.workers["draft"].held == set()


class Situations(Unlearned):
    """Remembers what it was asked, and waits whenever it may."""

    def __init__(self) -> None:
        self.asked: list[Situation] = []

    def decide(self, situation: Situation) -> Decision:
        self.asked.append(situation)
        return Decision(None if situation.may_wait else min(len(situation.confidences), 1))


def test_waiting_is_illegal_once_the_largest_block_waits() -> None:
    """The draft stops at its limit: another token will never come."""
    policy = Situations()
    desk = Desk(policy)
    desk.tell(Opened(0, 1))
    desk.tell(Abort(0))
    for role in ("draft", "target"):
        desk.tell(Closed(role, 0, 1))
    desk.tell(Submit(1, PROMPT, 3, GREEDY))
    assert not policy.asked[-1].may_wait, "the draft is being opened"
    assert policy.asked[-1].largest_block == 2
    desk.tell(Opened(1, 1))
    desk.tell(Block(1, 1, 1, 3, (1, 2, 3), (0.5,) * 3, ("model",) * 3, (0.0,) * 3, (0.0,) * 3))
    extend = desk.coordinator.sequences[1].extend
    assert extend is not None
    desk.tell(Verdict(1, 1, extend.extend_id, 0, 1, 0.0, 0.0, 0.0))
    assert (policy.asked[-1].largest_block, policy.asked[-1].may_wait) == (1, False)


def test_block_past_the_end_of_the_chain_reopens_the_draft() -> None:
    """A draft that lost its place would be out of place for the rest of the request."""
    desk = Desk()
    desk.block(5, 1)
    assert desk.sequence.metrics.protocol_errors == 1
    (again,) = desk.sent(Open)
    assert (again.serial, desk.sequence.fence) == (2, 2)
    desk.block(3, 1, serial=1)
    assert desk.sequence.metrics.stale_blocks == 1


def test_open_carries_guesses_and_says_which_tokens_are_committed() -> None:
    """A new draft that got committed tokens only would guess over what is in flight."""
    desk = Desk()
    desk.block(3, 1)
    desk.verdict(0, 1)
    desk.block(4, 2)
    desk.block(5, 3)
    desk.tell(Lost("draft", 1))
    desk.ready("draft", 2)
    (again,) = desk.sent(Open)
    assert (again.tokens, again.committed_length) == ((1, 2, 3, 1, 2, 3), 4)


def test_verdict_that_accepts_more_than_was_sent_ends_the_request() -> None:
    """Tokens out of thin air."""
    desk = Desk()
    desk.verdict(1, 1)
    (finish,) = desk.sent(Finish)
    assert (finish.reason, finish.cause) == ("error", "the target accepted 1 of 0 tokens")


def test_target_gone_ends_those_who_run_those_who_queue_and_those_who_come() -> None:
    """A request that waits for ever for a target that never comes back."""
    desk = Desk()
    desk.tell(Submit(1, PROMPT, 5, GREEDY))
    desk.tell(Lost("target", 1))
    desk.tell(Gone("target", "broken"))
    assert [(f.request, f.reason, f.cause) for f in desk.sent(Finish)] == [
        (0, "error", "broken"),
        (1, "error", "broken"),
    ]
    desk.tell(Submit(2, PROMPT, 5, GREEDY))
    assert [f.reason for f in desk.sent(Finish)] == ["error"]
    assert not desk.coordinator.sequences


def test_slot_is_given_on_only_after_closed() -> None:
    """A second request opened in a slot that the worker still holds."""
    desk = Desk()
    desk.tell(Submit(1, PROMPT, 5, GREEDY))
    desk.tell(Abort(0))
    assert desk.sent(Extend) == desk.sent(Open) == []
    desk.tell(Closed("target", 0, 1))
    assert [extend.request for extend in desk.sent(Extend)] == [1]
    desk.tell(Closed("draft", 0, 1))
    assert [opened.request for opened in desk.sent(Open)] == [1]


def test_a_prompt_that_fills_the_context_is_an_error_and_not_a_negative_block() -> None:
    """The front end refuses it; whoever embeds the coordinator alone must not get a wrong block."""
    machine = Coordinator(TakeAll())
    machine.handle(Ready("target", 1, 1, 8, 5, "cpu", ()), 0.0)
    commands = machine.handle(Submit(1, (1,) * 8, 4, sampling()), 0.0)
    assert [type(command) for command in commands] == [Finish]
    assert "no room" in commands[0].cause  # type: ignore[union-attr]


# -- guesses that are free

FREE: dict[str, Any] = {"sources": ("model", "ngram")}


@pytest.mark.parametrize("word", ["block", "computing", "exhausted"])
def test_target_waits_for_the_word_of_a_draft_that_looks_up(word: str) -> None:
    """A look-up takes less than sending an empty block costs; but there may be nothing to find,
    and then waiting for a pass of the model is the policy's to decide."""
    desk = Desk(TakeWaiting(), **FREE)
    desk.tell(Opened(0, 1))
    desk.verdict(0, 4)
    assert desk.sent(Extend) == []
    assert len(desk.sent(StartTimer)) == 1
    serial = desk.sequence.serial
    if word == "block":
        desk.block(4, 2, serial=serial)
    elif word == "computing":
        desk.tell(Computing(0, 1, serial))
    else:
        desk.tell(Exhausted(0, 1, serial, "nothing"))
    (extend,) = desk.sent(Extend)
    assert extend.tokens == ((4, 2) if word == "block" else (4,))
    desk.tell(TimerFired(0, 1))
    assert desk.sequence.metrics.timeouts == 0


def test_a_policy_thinks_while_the_target_works_and_not_while_it_waits_for_a_word() -> None:
    """A solution takes as long as a pass: the draft's word would lie there unheard meanwhile."""

    class Thinking(TakeAll):
        thought = 0

        def reflect(self) -> None:
            self.thought += 1

    desk = Desk(Thinking(), **FREE)
    desk.coordinator.reflect()
    assert desk.policy.thought == 1, "the target reads the prompt"
    desk.tell(Opened(0, 1))
    desk.verdict(0, 4)
    assert desk.sequence.extend is None, "the draft's word decides what comes next"
    desk.coordinator.reflect()
    assert desk.policy.thought == 1
    desk.tell(Computing(0, 1, desk.sequence.serial))
    desk.block(4, 2, serial=desk.sequence.serial)
    assert desk.sequence.extend
    desk.coordinator.reflect()
    assert desk.policy.thought == 2


@pytest.mark.parametrize("end", ["word", "timer", "no draft", "no target", "neither"])
def test_a_word_is_awaited_no_longer_than_it_can_come(end: str) -> None:
    """Users are told nothing meanwhile: if it never ended, they would hear nothing any more."""
    desk = Desk(TakeWaiting(), **FREE)
    desk.tell(Opened(0, 1))
    assert not desk.coordinator.awaits_word, "the target works"
    desk.verdict(0, 4)
    assert desk.coordinator.awaits_word
    (timer,) = desk.sent(StartTimer)
    if end == "word":
        desk.tell(Computing(0, 1, desk.sequence.serial))
    elif end == "timer":
        desk.tell(TimerFired(0, timer.timer))
    if end in {"no target", "neither"}:
        desk.tell(Lost("target", 1))
    if end in {"no draft", "neither"}:
        desk.tell(Lost("draft", 1))
    assert not desk.coordinator.awaits_word


def test_word_from_before_the_commit_is_not_the_one_awaited() -> None:
    """A late block of the abandoned chain would end the waiting, with nothing to send."""
    desk = Desk(TakeWaiting(), **FREE)
    desk.tell(Opened(0, 1))
    desk.verdict(0, 4)
    desk.tell(Computing(0, 1, desk.sequence.serial - 1))
    assert desk.sent(Extend) == []


def test_no_word_is_awaited_of_a_draft_that_only_computes() -> None:
    """It says nothing before its next guess: the target would idle for a whole step."""
    desk = Desk(TakeWaiting())
    desk.tell(Opened(0, 1))
    desk.verdict(0, 4)
    assert len(desk.sent(Extend)) == 1


def test_a_pause_of_the_model_holds_while_its_word_is_awaited() -> None:
    """Told too late, the draft begins a pass that nobody wants, in place of a look-up."""

    class Pausing(TakeWaiting):
        def decide(self, situation: Situation) -> Decision:
            return super().decide(situation)._replace(ahead=0)

    desk = Desk(Pausing(), **FREE)
    desk.tell(Opened(0, 1))
    desk.verdict(0, 4)
    assert desk.sent(Extend) == []
    (commit,) = desk.sent(Commit)
    assert commit.rest_at == 4 < commit.limit


@pytest.mark.parametrize(("source", "alone"), [("model", False), ("ngram", True)])
def test_guesses_of_a_model_that_is_done_are_not_the_targets_own_speed(
    source: Source, alone: bool
) -> None:
    """At a request's end the model rests, and its last guesses are judged: taken for the speed of
    the target alone, that is never reached again, and the model is let rest for ever."""
    desk = Desk(TakeWaiting(), **FREE)
    sequence = desk.sequence
    sequence.steps, sequence.waiting = [], [Drafted(1, 0.5, source, 0.0, 0.0, 0)]
    made = Pass(1, 2, reads=False, queued=False, begun=0.0)
    sequence.verify(9, 1, made, rests=True, more=False, limit=0)
    assert sequence.steps[0].alone is alone


def test_counts_are_kept_by_source() -> None:
    """Summed up, a source that is always wrong hides behind one that is right."""
    desk = Desk(**FREE)
    desk.tell(Opened(0, 1))
    serial = desk.sequence.serial
    desk.verdict(0, 4)
    serial = desk.sequence.serial
    desk.tell(
        Block(0, 1, serial, 4, (1, 2), (0.5,) * 2, ("ngram", "model"), (0.0,) * 2, (0.0,) * 2)
    )
    desk.verdict(1, 3)
    metrics = desk.sequence.metrics
    assert (metrics.ngram.drafted, metrics.ngram.sent, metrics.ngram.accepted) == (1, 1, 1)
    assert (metrics.model.drafted, metrics.model.sent, metrics.model.accepted) == (1, 1, 0)
    assert (metrics.drafted, metrics.sent, metrics.accepted) == (2, 2, 1)


@pytest.mark.parametrize(
    ("waiting", "hidden"),
    [
        ([GuessLaw((1,), (1.0,)), GuessLaw((2,), (1.0,))], False),
        ([GuessLaw((1,), (1.0,)), GuessLaw((2, 3), (0.5, 0.5))], True),
    ],
    ids=["looked up", "drawn"],
)
def test_values_are_hidden_where_they_are_up_to_chance(
    waiting: list[GuessLaw], hidden: bool
) -> None:
    """Hidden too rarely, the output is lossy; too often, look-ups are sent whatever they are."""
    desk = Desk(TakeWaiting(), **FREE)
    desk.sequence.sampling = sampling(1.0, acceptance="rejection")
    desk.tell(Opened(0, 1))
    times, laws = (0.0,) * 2, tuple(waiting)
    desk.tell(Block(0, 1, 1, 3, (1, 2), (0.5,) * 2, ("ngram", "model"), times, times, laws))
    seen = situation(desk.sequence, 9, 0.0, draft=True, target=False)
    assert seen.values_hidden is hidden
