"""A target that looks up for itself: the same text, at the prices that it is told."""

from typing import Any

import pytest

from specpipe.coordinator import Coordinator
from specpipe.dispatch import make_policy
from specpipe.drafting.drafter import Drafter, Sources
from specpipe.events import Event, Send
from specpipe.messages import Finish, Submit, Tokens
from specpipe.pace import DraftState
from specpipe.policy import Judged
from specpipe.pricing import LONGEST_RUN, prices_of, worth_their_prices
from specpipe.sampling import Sampling
from specpipe.worker_messages import (
    Block,
    Close,
    Commit,
    Exhausted,
    Extend,
    LookedUp,
    Opened,
    Proceed,
    Ready,
    Verdict,
)
from specpipe.workers.target import Target
from tests.toys import TargetLaw, ToyModel, decode_plain, sampling
from tests.unit.test_coordinator import Desk

LAW = TargetLaw(12, 2)  # of two tokens' memory: its greedy text goes round in a circle of five
PROMPT = (1, 2, 3)
FREE = (0.0,) * 8
BOTH = ("model", "ngram")


def looking(*, slots: int = 1, remember: int = 0) -> Target:
    model = ToyModel(LAW, num_slots=slots)
    sources = Sources(None, lookup=True, remember=remember, context_length=256)
    return Target(model, 1, sources=sources)


class Asked:
    """A target with a request whose prompt it has read."""

    def __init__(self, params: Sampling, target: Target | None = None, request: int = 0) -> None:
        self.target, self.request = target or looking(), request
        self.written: list[int] = []
        start = Extend(request, 1, 0, PROMPT, len(PROMPT), params)
        (verdict,) = self.target.handle(start)
        assert isinstance(verdict, Verdict)
        self.written.append(verdict.token)

    def proceed(self, prices: tuple[float, ...] = FREE, limit: int = 200) -> Verdict:
        """Another pass."""
        message = Proceed(self.request, 2, limit=limit, prices=prices)
        (verdict,) = self.target.handle(message)
        assert isinstance(verdict, Verdict), verdict
        accepted = verdict.block[: verdict.accepted]
        self.written += [*(guess.token for guess in accepted), verdict.token]
        return verdict


@pytest.mark.parametrize("acceptance", ["coupled", "rejection"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_what_it_writes_is_what_it_writes_without_guesses(
    temperature: float, acceptance: Any
) -> None:
    """A guess at the wrong position, or a cache that keeps what fell, changes the text."""
    right = 0
    for seed in range(20):
        params = sampling(temperature, seed=seed, acceptance=acceptance)
        asked = Asked(params)
        for _ in range(18):
            right += asked.proceed().accepted
        if acceptance == "coupled" or not temperature:
            expected, _ = decode_plain(LAW, PROMPT, params, len(asked.written))
            assert asked.written == expected
    assert right > 100


def test_it_makes_as_many_guesses_as_have_a_price_and_are_worth_it() -> None:
    """Without prices it would guess what nobody asked for, and make the target alone slower."""
    asked = Asked(sampling())
    for _ in range(20):
        asked.proceed()
    assert asked.proceed(()).block == ()
    assert len(asked.proceed((0.0,) * 3).block) == 3
    assert asked.proceed((1.0,) * 8).block == (), "no guess brings more than a token"


def test_it_stops_where_the_text_ends() -> None:
    """Past the end are rows in vain, or past the context a cache that is overrun."""
    asked = Asked(sampling())
    for _ in range(10):
        asked.proceed()
    chain = len(PROMPT) + len(asked.written)
    assert len(asked.proceed(limit=chain + 2).block) == 2
    chain = len(PROMPT) + len(asked.written)
    assert asked.proceed(limit=chain).block == ()
    whole = Proceed(0, 2, limit=len(PROMPT) + len(asked.written) - 1, prices=FREE)
    assert asked.target.handle(whole) == [], "its text is whole"


def test_guesses_that_were_sent_come_before_its_own() -> None:
    """Two blocks behind each other would be judged as one, at wrong positions."""
    asked = Asked(sampling())
    first, second = decode_plain(LAW, PROMPT, sampling(), 2)[0]
    message = Proceed(0, 2, (second, 4, 4), limit=200, prices=FREE)
    (before,) = asked.target.handle(Extend(0, 2, 3, (first,), 4, None))
    assert isinstance(before, Verdict)
    (verdict,) = asked.target.handle(message)
    assert isinstance(verdict, Verdict)
    assert before.token == second
    assert verdict.block == ()


def test_of_several_in_a_pass_each_gets_its_own_and_all_count_the_rows() -> None:
    """Rows of others, of which nobody was told, would make a pass of few rows seem slow."""
    target = looking(slots=2)
    for each in (Asked(sampling(), target, request) for request in (0, 1)):
        for _ in range(10):
            each.proceed()
    first = Proceed(0, 5, more=True, limit=200, prices=FREE)
    assert target.handle(first) == []
    answers = target.handle(Proceed(1, 5, limit=200, prices=(0.0,)))
    blocks = {a.request: len(a.block) for a in answers if isinstance(a, Verdict)}
    assert blocks[0] > blocks[1] == 1
    assert {a.extra_rows for a in answers if isinstance(a, Verdict)} == {sum(blocks.values())}


def test_trouble_with_look_ups_ends_the_guessing_and_not_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A guess is never worth a text."""
    asked = Asked(sampling())

    def fail(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(Drafter, "look_up", fail)
    assert asked.proceed().block == ()
    monkeypatch.undo()
    assert asked.proceed().block == (), "it went on in an index that nobody knows the state of"
    assert asked.written == decode_plain(LAW, PROMPT, sampling(), 3)[0]


def test_past_outputs_are_remembered_and_nothing_else() -> None:
    """Prompts are others' secrets, and not what a model writes."""
    target = looking(remember=1024)
    asked = Asked(sampling(prompt_length=len(PROMPT)), target)
    for _ in range(5):
        asked.proceed()
    target.handle(Close(0))
    assert target._sources is not None
    assert target._sources.past is not None
    kept = target._sources.past._newer._tokens.tolist()
    assert kept == asked.written[: len(kept)]
    assert len(kept) >= len(asked.written) - 1
    verdict = Asked(sampling(), target, 1).proceed()
    assert {guess.source for guess in verdict.block} == {"past"}


# -- together with the coordinator


def answers(policy: str, params: Sampling, most: int) -> tuple[list[int], Finish]:
    """A request's text and end, by a coordinator and a target that looks up."""
    coordinator, target = Coordinator(make_policy(policy)), looking()
    events: list[Event] = [
        Ready("target", 1, 1, 256, 5, "cpu", (), target.sources),
        Submit(0, PROMPT, most, params),
    ]
    text: list[int] = []
    for turn in range(1000):
        commands = [c for event in events for c in coordinator.handle(event, float(turn))]
        events = []
        for command in commands:
            if isinstance(command, Send):
                events += target.handle(command.message)
            elif isinstance(command, Tokens):
                text += command.tokens
            elif isinstance(command, Finish):
                return text, command
    raise AssertionError("it never ends")


@pytest.mark.parametrize("policy", ["elastic", "take_all", "serial:3", "pearl:2", "serial:0"])
@pytest.mark.parametrize("most", [1, 2, 7, 60])
def test_a_request_ends_where_it_is_to_and_its_guesses_are_counted(policy: str, most: int) -> None:
    """A pass more, or a guess that nobody counted, and speeds and rates are of another run."""
    text, finish = answers(policy, sampling(), most)
    assert (text, finish.reason) == decode_plain(LAW, PROMPT, sampling(), most)
    metrics = finish.metrics
    assert metrics.ngram.drafted >= metrics.ngram.sent >= metrics.ngram.accepted
    assert metrics.accepted + metrics.target_forwards - len(text) in {0, 1}
    if policy == "serial:3":
        assert all(len(block) <= 3 for block in metrics.blocks)
    if policy == "serial:0":
        assert metrics.drafted == 0
    elif most == 60:
        assert metrics.ngram.accepted > 20
        assert metrics.target_forwards < 40


@pytest.fixture
def desk() -> Desk:
    """A target that looks up, and a draft that has been opened; a policy that lets it."""

    class Open(type(make_policy("take_all"))):  # type: ignore[misc]
        offered: tuple[float, ...] = FREE
        heard: list[Judged]

        def prices(self, sequences: int, draft: DraftState) -> tuple[float, ...]:
            return self.offered if draft is DraftState.OPEN else ()

        def runs_ahead(self, sequences: int) -> bool:
            return bool(self.offered)

        def judged(self, guesses: Any) -> None:
            self.heard += guesses

    policy = Open()
    policy.heard, policy.offered = [], ()
    desk = Desk(policy, sources=BOTH)
    desk.tell(Opened(0, 1))
    policy.offered = FREE
    return desk


def own(desk: Desk, accepted: int, token: int, *guesses: int) -> None:
    """A verdict on a block of the target's own."""
    block = tuple(LookedUp(guess, 0.9, "ngram", 1.0, 2.0) for guess in guesses)
    number = desk.sequence.extend.extend_id
    desk.tell(Verdict(0, 1, number, accepted, token, 2.0, 3.0, 0.0, block=block))


def test_what_the_draft_guessed_for_the_same_places_is_compared_by_its_own_position(
    desk: Desk,
) -> None:
    """Taken to follow the target's guesses, the draft's chain is off by a block."""
    desk.verdict(0, 1)
    own(desk, 0, 1)
    desk.tell(Block(0, 1, 1, 5, (2, 4), (0.5,) * 2, ("ngram",) * 2, (0.0,) * 2, (0.0,) * 2))
    assert desk.sequence.chain() == [*PROMPT, 1, 1, 2, 4]
    own(desk, 1, 3, 2, 2)
    assert desk.sequence.chain() == [*PROMPT, 1, 1, 2, 3]
    assert desk.sequence.metrics.ngram.sent == 2
    assert desk.sequence.metrics.ngram.accepted == 1
    assert desk.sequence.metrics.rollbacks == 1
    fates = {(each.position, each.right) for each in desk.policy.heard}
    assert fates >= {(5, True), (6, False)}


def test_a_draft_that_adds_nothing_is_told_of_nothing_and_then_of_all(desk: Desk) -> None:
    """Each word would take two processes' time; a word left out would need all tokens again."""
    desk.verdict(0, 1)
    told = desk.sent(Commit)
    own(desk, 0, 1)
    told += desk.sent(Commit)
    assert told[-1].limit <= len(desk.sequence.committed)
    desk.tell(Exhausted(0, 1, desk.sequence.serial, "limit"))
    for _ in range(3):
        own(desk, 1, 3, 2, 2)
        assert desk.sent(Commit) == []
    desk.policy.offered = ()
    own(desk, 0, 4)
    own(desk, 0, 4)
    (commit,) = desk.sent(Commit)
    assert commit.first_serial == told[-1].last_serial + 1
    known = told[-1].start + len(told[-1].tokens)
    assert commit.start == known
    assert list(commit.tokens) == desk.sequence.committed[known:]
    assert commit.limit > len(desk.sequence.committed)


def test_nothing_is_told_to_follow_guesses_that_nobody_knows_yet(desk: Desk) -> None:
    """What the draft guesses is for a place that the target's own guesses may take."""
    desk.verdict(0, 1)
    desk.tell(Block(0, 1, 1, 4, (2, 4), (0.5,) * 2, ("ngram",) * 2, (0.0,) * 2, (0.0,) * 2))
    own(desk, 0, 2)
    proceeds = desk.sent(Proceed)
    assert proceeds
    assert all(each.guesses == () and each.prices for each in proceeds)


def test_more_accepted_than_was_guessed_is_an_error(desk: Desk) -> None:
    """Tokens that nobody knows would be committed."""
    desk.verdict(0, 1)
    own(desk, 2, 3)
    (finish,) = desk.sent(Finish)
    assert finish.reason == "error"


# -- prices


def test_prices_are_what_rows_cost_at_the_usual_rate() -> None:
    """In seconds, or by another pass's length, all guesses are worth it, or none."""
    assert prices_of(100.0, (0.01, 0.012, 0.012, 0.02)) == pytest.approx((0.2, 0.0, 0.8))


@pytest.mark.parametrize(
    ("chances", "prices", "expected"),
    [
        ([0.9, 0.9, 0.9], (0.1, 0.1, 0.1), 3),
        ([0.9, 0.9, 0.9], (0.1,), 1),
        ([0.9, 0.1, 0.9], (0.2, 0.2, 0.2), 1),
        ([0.3, 0.99, 0.99], (0.35, 0.01, 0.01), 3),  # a first one that is not worth it by itself
        ([0.3, 0.3], (0.35, 0.2), 0),
        ([], (0.1,), 0),
        ([0.9], (), 0),
    ],
)
def test_as_many_are_sent_as_exceed_their_prices_by_most(
    chances: list[float], prices: tuple[float, ...], expected: int
) -> None:
    assert worth_their_prices(chances, prices) == expected


@pytest.mark.parametrize(
    ("policy", "count"),
    [("take_all", LONGEST_RUN), ("serial:4", 4), ("serial:0", 0), ("pearl:2", 2), ("elastic", 16)],
)
def test_every_policy_says_how_many_the_target_may_make(policy: str, count: int) -> None:
    """A draft length that look-ups ignore makes a comparison of rules one of something else."""
    assert len(make_policy(policy).prices(1, DraftState.ABSENT)) == count
    assert make_policy(policy).prices(1, DraftState.OPEN) == (), "the draft's guesses come first"
