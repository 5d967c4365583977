"""Several sequences at once: who takes part in a pass, in which order, and who is told what."""

from typing import Any

import pytest

from specpipe.coordinator import Coordinator
from specpipe.dispatch import Serial, TakeAll, Unlearned
from specpipe.events import Command, Event, Send, TimerFired
from specpipe.messages import Abort, Lost, Submit
from specpipe.policy import Decision, Policy, Situation
from specpipe.worker_messages import (
    Block,
    Close,
    Closed,
    Commit,
    Exhausted,
    Extend,
    Open,
    Opened,
    Progress,
    Ready,
    Verdict,
)
from tests.toys import sampling


class TakeWaiting(Unlearned):
    """Sends what waits, and never waits itself."""

    def decide(self, situation: Situation) -> Decision:
        return Decision(min(len(situation.confidences), situation.largest_block))


class Desk:
    """A coordinator with workers of so many slots; what it said last."""

    def __init__(
        self, policy: Policy | None = None, slots: int = 4, chunk: int = 16, **settings: Any
    ) -> None:
        self.coordinator = Coordinator(policy or TakeWaiting(), prefill_chunk=chunk, **settings)
        self.said: list[Command] = []
        for role in ("target", "draft"):
            self.tell(Ready(role, 1, slots, 100, 5, "cpu", (), ("model",)))

    def submit(self, *requests: int, prompt: int = 3) -> None:
        for request in requests:
            self.tell(Submit(request, (1,) * prompt, 20, sampling()))

    def tell(self, event: Event) -> list[Command]:
        self.said = self.coordinator.handle(event, 0.0)
        return self.said

    def sent(self, kind: type) -> list[Any]:
        messages = [command.message for command in self.said if isinstance(command, Send)]
        return [message for message in messages if isinstance(message, kind)]

    def block(self, request: int, start: int, *tokens: int) -> None:
        serial = self.coordinator.sequences[request].serial
        times, sources = (0.0,) * len(tokens), ("model",) * len(tokens)
        confidences = (0.5,) * len(tokens)
        self.tell(Block(request, 1, serial, start, tokens, confidences, sources, times, times))

    def answer(self, *requests: int, accepted: int = 0) -> None:
        """The target's answers on the pass in flight."""
        for request in requests:
            extend = self.coordinator.sequences[request].extend
            assert extend is not None
            end = extend.start + len(extend.tokens)
            if end < extend.verify_from:
                self.tell(Progress(request, 1, extend.extend_id, end, 0, 0))
            else:
                self.tell(Verdict(request, 1, extend.extend_id, accepted, 2, 0, 0, 0))


def started(count: int, policy: Policy | None = None, **settings: Any) -> Desk:
    """So many sequences in one pass; the first has written a token."""
    desk = Desk(policy, slots=count, **settings)
    desk.submit(*range(count), prompt=1)
    desk.answer(0)
    assert [extend.request for extend in desk.sent(Extend)] == list(range(count))
    return desk


def test_sequences_share_a_pass_once_the_last_one_is_over() -> None:
    """A pass over the weights for each would make many no faster than one."""
    desk = started(3)
    assert [extend.more for extend in desk.sent(Extend)] == [True, True, False]
    desk.answer(1, 0)
    assert desk.sent(Extend) == [], "a new pass before the last one's verdicts were all there"
    desk.answer(2)
    extends = desk.sent(Extend)
    assert [extend.request for extend in extends] == [0, 1, 2]
    assert [extend.more for extend in extends] == [True, True, False]


def test_drafts_hear_of_commits_when_it_is_decided_how_far_they_go() -> None:
    """Told at each verdict, they would be told twice."""
    desk = started(2)
    for request in (0, 1):
        desk.tell(Opened(request, 1))
    desk.answer(0)
    assert desk.sent(Commit) == []
    desk.answer(1)
    assert [commit.request for commit in desk.sent(Commit)] == [0, 1]


def test_a_newcomer_is_read_in_small_parts_while_others_write() -> None:
    """A long prompt in one piece would hold up everybody's next token."""
    desk = started(2, chunk=16)
    desk.tell(Abort(1))
    desk.tell(Closed("target", 1, 1))
    desk.submit(7, prompt=9)
    desk.answer(0)
    parts = []
    while not parts or parts[-1].start + len(parts[-1].tokens) < 9:
        first, part = desk.sent(Extend)
        assert first.request == 0
        parts.append(part)
        desk.answer(0, 7)
    assert [len(part.tokens) for part in parts] == [2, 2, 2, 3]
    assert [extend.request for extend in desk.sent(Extend)] == [0, 7]


def test_newcomers_read_in_the_order_of_their_coming_and_none_starves() -> None:
    """Short prompts that overtake a long one could do so for ever."""
    desk = Desk(chunk=8, slots=3)
    desk.submit(0, prompt=20)
    desk.submit(1, 2, prompt=3)
    assert [len(extend.tokens) for extend in desk.sent(Extend)] == []
    desk.answer(0)
    first, *rest = desk.sent(Extend)
    assert (first.request, first.start, len(first.tokens), rest) == (0, 8, 8, [])
    desk.answer(0)
    assert [(extend.request, len(extend.tokens)) for extend in desk.sent(Extend)] == [
        (0, 4),
        (1, 3),
        (2, 3),
    ]


def test_free_slots_go_to_who_came_first_and_not_to_who_left() -> None:
    """A request that was given up while it waited would keep its slot for ever."""
    desk = started(1)
    desk.submit(5, 6, 7)
    desk.tell(Abort(5))
    desk.tell(Abort(0))
    assert {message.request for message in desk.sent(Close)} == {0}
    desk.tell(Closed("target", 0, 1))
    (extend,) = desk.sent(Extend)
    assert extend.request == 6
    assert desk.sent(Open) == []  # the draft's slot is not free yet
    desk.tell(Closed("draft", 0, 1))
    assert [message.request for message in desk.sent(Open)] == [6]


def test_after_a_restart_who_was_at_work_comes_first() -> None:
    """A newcomer in its place would leave a half-written answer waiting for ever."""
    desk = started(2)
    desk.submit(9)
    desk.tell(Lost("target", 1))
    desk.tell(Ready("target", 2, 2, 100, 5, "cpu", ()))
    assert [(extend.request, extend.start) for extend in desk.sent(Extend)] == [(0, 0), (1, 0)]


def test_who_waits_for_the_draft_does_not_hold_up_the_others() -> None:
    """One slow draft would stall all sequences."""
    desk = started(2, TakeAll())
    for request in (0, 1):
        desk.tell(Opened(request, 1))
    desk.answer(0, 1)
    desk.block(1, 2, 3)  # 0 has nothing to send, and its draft is at work
    (extend,) = desk.sent(Extend)
    assert extend.request == 1
    timer = desk.coordinator.sequences[0].timer
    assert timer is not None, "a draft that hangs would never be noticed while others write"
    desk.tell(TimerFired(0, timer))
    desk.answer(1)
    assert 0 in {extend.request for extend in desk.sent(Extend)}


def test_where_models_take_turns_all_wait_until_each_draft_is_done() -> None:
    """The ready one's limits changed each time it was asked, so that its draft began anew, and it
    waited for that: nobody ever went on."""
    desk = Desk(Serial(1), taking_turns=True)
    desk.submit(0, 1, prompt=1)
    for request in (0, 1):
        desk.tell(Opened(request, 1))
    desk.block(0, 1, 1)
    told = desk.coordinator.sequences[0].serial
    desk.tell(Exhausted(0, 1, told, "limit"))
    assert desk.sent(Extend) == [], "the target works while a draft does"
    for _ in range(3):
        desk.tell(TimerFired(9, 9))
    assert desk.coordinator.sequences[0].serial == told, "told anew though nothing was decided"
    desk.block(1, 1, 1)
    assert [extend.request for extend in desk.sent(Extend)] == [0, 1]


def test_an_end_of_drafting_during_a_pass_is_no_broken_promise() -> None:
    """A timer that ran on would make a sequence go without guesses that it then had."""
    desk = started(2, TakeAll())
    for request in (0, 1):
        desk.tell(Opened(request, 1))
    desk.answer(0, 1)
    desk.block(1, 2, 3)
    sequence = desk.coordinator.sequences[0]
    timer = sequence.timer
    assert timer is not None
    desk.tell(Exhausted(0, 1, sequence.serial, "limit"))
    desk.tell(TimerFired(0, timer))
    assert sequence.metrics.timeouts == 0


@pytest.mark.parametrize("reads", [True, False])
def test_a_word_is_not_awaited_while_the_draft_reads_a_newcomers_prompt(reads: bool) -> None:
    """It comes after that: the target idled for as long as the model took for a whole prompt."""

    class Patient(TakeWaiting):
        def awaits_word(self, sequences: int) -> bool:
            return True

    desk = Desk(Patient(), slots=2)
    desk.tell(Ready("draft", 2, 2, 100, 5, "cpu", (), ("model", "ngram")))
    desk.submit(0, 1, prompt=1)
    for request in (0,) if reads else (0, 1):
        desk.tell(Opened(request, 2))
    desk.answer(0)
    assert [extend.request for extend in desk.sent(Extend)] == ([0, 1] if reads else [])
