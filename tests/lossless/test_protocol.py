"""The protocol of coordinator, draft and target: random schedules, the known traps, planted bugs.

The schedules come from tests/virtual.py, which looks into all three parts after every event. The
planted bugs show that it would have seen them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from types import ModuleType
from typing import Any

import pytest

from specpipe import sampler as sampler_module
from specpipe import sequence as sequence_module
from specpipe.coordinator import Coordinator
from specpipe.dispatch import TakeAll
from specpipe.drafting import drafter as drafter_module
from specpipe.drafting.drafter import Sources
from specpipe.drafting.ngram import NGrams
from specpipe.events import Event, Send, StartTimer, TimerFired
from specpipe.messages import Finish, Lost, Submit
from specpipe.pace import DraftState
from specpipe.sequence import SequenceState
from specpipe.stopping import StopRule
from specpipe.worker_messages import Block, Extend, Open, Proceed, Progress, Ready, Role, Verdict
from specpipe.workers import target as target_module
from specpipe.workers.draft import Draft, _Chain
from specpipe.workers.target import Target
from tests.toys import DraftLaw, TargetLaw, ToyModel, sampling
from tests.unit import test_coordinator, test_observation, test_workers
from tests.virtual import World

# -- random schedules


def failure(seed: int) -> str | None:
    """What the schedule shows to be wrong."""
    try:
        World(seed).run()
    except Exception as error:
        return f"seed {seed}: {type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("first", range(0, 2000, 500))
def test_schedules(first: int) -> None:
    """Any deadlock, lost token, wrong cache or wasted draft, under any of these faults."""
    assert [wrong for seed in range(first, first + 500) if (wrong := failure(seed))] == []


@pytest.mark.slow
@pytest.mark.parametrize("first", range(2000, 22_000, 1000))
def test_many_schedules(first: int) -> None:
    """What happens once in thousands of runs, such as a Ready that comes after its worker's end."""
    assert [wrong for seed in range(first, first + 1000) if (wrong := failure(seed))] == []


def test_schedules_reach_everything() -> None:
    """A driver whose faults never happen would find nothing, and look the same."""
    seen: dict[str, int] = {}
    for seed in range(300):
        world = World(seed)
        world.run()
        for what, times in world.seen.items():
            seen[what] = seen.get(what, 0) + times
    for what in (
        *("Opened", "Block", "Exhausted", "Resync", "Verdict", "Progress", "Closed", "Failed"),
        *("draft killed", "target killed", "draft stalled", "target stalled", "timeouts"),
        *("draft not restarted", "target not restarted", "doubled: Block", "doubled: Verdict"),
        *("exhausted: limit", "exhausted: context", "exhausted: stop"),
        *("end guessed", "end guessed and ignored", "exhausted: nothing", "Computing"),
        *("guess of model", "guess of ngram", "guess of past"),
        *("looked up by the target", "looked up by the target and accepted"),
        *(f"{policy}: accepted" for policy in ("serial", "pearl", "take_all", "elastic", "random")),
        *("stop", "length", "abort", "error", "rollbacks", "accepted", "stale_blocks", "dropped"),
        *("cached_tokens", "two passes", "hushed"),
    ):
        assert seen.get(what, 0) >= 5, what
    assert seen["in step"] > 5000, "the chains were hardly ever compared"


# -- without faults


def _perfect() -> Draft:
    return Draft(Sources(ToyModel(DraftLaw(TargetLaw(7), 100))), 1)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_perfect_draft_is_never_refused(temperature: float) -> None:
    """An off-by-one in positions or caches shows as an acceptance rate below one, nowhere else."""
    params, draft = sampling(temperature, seed=5), _perfect()
    target = Target(ToyModel(TargetLaw(7)), 1)
    coordinator, commands = Coordinator(TakeAll(), lookahead=4), []
    events: list[Event] = [
        Ready("target", 1, 1, 256, 5, "cpu", ()),
        Ready("draft", 1, 1, 256, 5, "cpu", (), ("model",)),
        Submit(0, (1, 2, 3), 60, params),
    ]
    for turn in count():
        for event in events:
            commands += coordinator.handle(event, float(turn))
        events = []
        for command in commands:
            if isinstance(command, Send) and command.role == "draft":
                events += draft.handle(command.message)
        events += [answer for _ in range(3) for answer in draft.step()]
        for command in commands:
            if isinstance(command, Send) and command.role == "target":
                events += target.handle(command.message)
        finish = [command for command in commands if isinstance(command, Finish)]
        if finish:
            break
        commands = []
    metrics = finish[0].metrics
    assert metrics.acceptance_rate == 1.0
    assert metrics.rollbacks == metrics.stale_blocks == metrics.protocol_errors == 0
    assert metrics.mean_acceptance_length is not None
    assert metrics.mean_acceptance_length > 2


# -- planted bugs

Patch = Callable[[pytest.MonkeyPatch], None]


def wrapped(
    cls: type, name: str, change: Callable[..., Any]
) -> Callable[[pytest.MonkeyPatch], None]:
    """A patch that calls `change(original, self, *args)` in place of a method."""

    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(cls, name)
        monkeypatch.setattr(cls, name, lambda *args, **more: change(original, *args, **more))

    return apply


def _fenceless(take_block: Any, sequence: SequenceState, block: Block) -> Any:
    sequence.fence = 0
    return take_block(sequence, block)


def _open_committed(open_: Any, sequence: SequenceState, limits: tuple[int, int]) -> Open:
    message: Open = open_(sequence, limits)
    return replace(message, tokens=tuple(sequence.committed))


def _open_all_known(open_: Any, sequence: SequenceState, limits: tuple[int, int]) -> Open:
    message: Open = open_(sequence, limits)
    return replace(message, committed_length=len(message.tokens))


def _open_unfenced(open_: Any, sequence: SequenceState, limits: tuple[int, int]) -> Open:
    fence = sequence.fence
    message: Open = open_(sequence, limits)
    sequence.fence = fence
    return message


def _in_flight_vanishes(lose_target: Any, sequence: SequenceState, *, held: bool) -> None:
    del sequence.steps[:1]
    lose_target(sequence, held=held)


def _next_step_vanishes(lose_target: Any, sequence: SequenceState, *, held: bool) -> None:
    del sequence.steps[1:]
    lose_target(sequence, held=held)


def _holds_whatever_was_drawn(
    after: Any, message: Proceed, position: int, token: int, *, whole: bool
) -> Extend:
    extend: Extend = after(message, position, token, whole=whole)
    return replace(extend, tokens=(token, *message.guesses[1:]))


def _token_compared_only(
    after: Any, message: Proceed, position: int, token: int, *, whole: bool
) -> Extend:
    extend: Extend = after(message, position, token, whole=True)
    return extend


def _last_token_only(
    disagreement: Any, chain: _Chain, start: int, tokens: Sequence[int]
) -> int | None:
    last = start + len(tokens) - 1
    same = last < len(chain.tokens) and chain.tokens[last] == tokens[-1]
    return None if same else disagreement(chain, start, tokens)


def _never_resumed(news: Any, sequence: SequenceState, limits: tuple[int, int]) -> Any:
    """Tells the draft of new tokens, but not of another limit without any."""
    return news(sequence, limits) if sequence.unsent else None


def _paused_while_opening(limits: Any, sequence: SequenceState, *args: int) -> tuple[int, int]:
    at, sequence.draft = sequence.draft, DraftState.OPEN
    found: tuple[int, int] = limits(sequence, *args)
    sequence.draft = at
    return found


def _one_timer_for_all(on_block: Any, coordinator: Coordinator, event: Block) -> None:
    sequence = coordinator.sequences[event.request]
    timer = sequence.timer
    on_block(coordinator, event)
    sequence.timer = timer


def _without_timers(handle: Any, *args: Any) -> list[Any]:
    return [command for command in handle(*args) if not isinstance(command, StartTimer)]


def _any_extend(answered: Any, coordinator: Coordinator, event: Verdict | Progress) -> Any:
    return coordinator._current("target", event)


def _any_incarnation(current: Any, coordinator: Coordinator, role: Role, event: Any) -> Any:
    return coordinator.sequences.get(event.request)


def _lost_is_forgotten(on_lost: Any, coordinator: Coordinator, event: Lost) -> None:
    if event.incarnation == coordinator.workers[event.role].incarnation:
        on_lost(coordinator, event)


def _back_is_not_lost(on_ready: Any, coordinator: Coordinator, event: Ready) -> None:
    worker = coordinator.workers[event.role]
    worker.up = worker.up and event.incarnation <= worker.incarnation
    on_ready(coordinator, event)


def _patient(on_timer: Any, coordinator: Coordinator, event: TimerFired) -> None:
    on_timer(coordinator, event)
    if sequence := coordinator.sequences.get(event.request):
        sequence.silent = False


class Untruncated:
    """A model that forgets nothing."""

    def __init__(self, model: ToyModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def truncate(self, slot: int, length: int) -> None:
        pass


def _untruncated(init: Any, user: Sources | Target, model: Any, *args: Any, **more: Any) -> None:
    init(user, model and Untruncated(model), *args, **more)


def _patch_init(cls: type) -> Patch:
    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        original = cls.__init__
        monkeypatch.setattr(
            cls, "__init__", lambda *args, **more: _untruncated(original, *args, **more)
        )

    return apply


def _last_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = StopRule.cut
    monkeypatch.setattr(
        StopRule,
        "cut",
        lambda self, tokens, left: cut(self, tokens[:-1] if len(tokens) > 1 else tokens, left),
    )


def _short_fed(advance: Any, draft: Draft, request: int, chain: _Chain, interrupted: Any) -> Any:
    """Feeds only the newest token, once the prompt is read: the guess before it has no entry."""
    model, slot = draft._sources.model, chain.drafter._slot
    length = model.length(slot)
    if 0 < length < len(chain.tokens) - 1:
        model.held[slot] += [chain.tokens[-1]] * (len(chain.tokens) - 1 - length)
    return advance(draft, request, chain, interrupted)


def _sees_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Penalties count the whole block, the guesses after the position too."""
    original = sampler_module.adjusted
    monkeypatch.setattr(
        sampler_module,
        "adjusted",
        lambda row, sampling, ids, _: original(row, sampling, ids, len(ids)),
    )


def _sees_committed_only(handle: Any, target: Target, message: Any, *more: Any) -> Any:
    """Penalties don't count the guesses before the position."""
    original = target_module.judge

    def judge(*args: Any, laws: Any, tokens: Any) -> Any:
        count = args[2]
        return original(*args, laws=laws, tokens=[*tokens[:count], *[0] * len(tokens[count:])])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target_module, "judge", judge)
        return handle(target, message, *more)


def _forgetful_stop(cut: Any, rule: StopRule, tokens: Sequence[int], left: int) -> Any:
    """Looks for stop texts in each verdict by itself."""
    if rule._texts:
        rule._texts.flush()
    return cut(rule, tokens, left)


def _rows_swapped(compute: Any, target: Target, works: Sequence[Any]) -> None:
    """Of sequences that share a pass, each gets the other's rows."""
    compute(target, works)
    alike = [work for work in works if work.rows == works[0].rows]
    rows = [work.logits for work in alike]
    for work, logits in zip(alike, [*rows[1:], *rows[:1]], strict=True):
        work.logits = logits


def _laws_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    original = sequence_module.laws_of
    monkeypatch.setattr(sequence_module, "laws_of", lambda block: original(block)[::-1])


def _laws_forgotten(followed_by: Any, extend: Extend, guesses: Any, laws: Any = ()) -> Extend:
    """The target's own guesses under the rejection rule."""
    message: Extend = followed_by(extend, guesses)
    return message


def _boundless(look_up: Any, target: Target, held: Any, extend: Any, message: Proceed) -> Any:
    """The target guesses past the end."""
    return look_up(target, held, extend, replace(message, limit=10**6))


def _untold(answer: Any, *args: Any) -> Any:
    """The target keeps to itself what it guessed."""
    message = answer(*args)
    return replace(message, block=()) if isinstance(message, Verdict) else message


def _taken_for_alike(module: ModuleType) -> Patch:
    """What another request left in a slot is not compared."""

    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "common_length", lambda *texts: min(map(len, texts)))

    return apply


PLANTED: dict[str, Patch] = {
    "target reads on in another's text": _taken_for_alike(target_module),
    "draft reads on in another's text": _taken_for_alike(drafter_module),
    "no fence": wrapped(SequenceState, "take_block", _fenceless),
    "any answer is taken for the extend's": wrapped(Coordinator, "_answered", _any_extend),
    "open carries committed tokens only": wrapped(SequenceState, "open", _open_committed),
    "open calls guesses committed": wrapped(SequenceState, "open", _open_all_known),
    "draft cache not truncated": _patch_init(Sources),
    "target cache not truncated": _patch_init(Target),
    "look-ups not truncated": wrapped(NGrams, "truncate", lambda *_: None),
    "token after the block dropped": _last_dropped,
    "last guess has no cache entry": wrapped(Draft, "_advance", _short_fed),
    "no exhausted": wrapped(Draft, "_is_to_say_so", lambda *_: False),
    "no timer": wrapped(Coordinator, "handle", _without_timers),
    "in-flight tokens vanish": wrapped(SequenceState, "lose_target", _in_flight_vanishes),
    "guesses sent ahead vanish": wrapped(SequenceState, "lose_target", _next_step_vanishes),
    "guesses behind another token": wrapped(Proceed, "after", _holds_whatever_was_drawn),
    "guesses behind a block that fell": wrapped(Proceed, "after", _token_compared_only),
    "ready does not mean lost": wrapped(Coordinator, "_on_ready", _back_is_not_lost),
    "penalties see later guesses": _sees_too_much,
    "penalties miss the block": wrapped(Target, "handle", _sees_committed_only),
    "stop texts end with the verdict": wrapped(StopRule, "cut", _forgetful_stop),
    "rows of other sequences": wrapped(Target, "_compute", _rows_swapped),
    "laws of other guesses": _laws_swapped,
    "laws of the target's own guesses": wrapped(Extend, "followed_by", _laws_forgotten),
    "the target guesses past the end": wrapped(Target, "_look_up", _boundless),
    "the target's guesses are not told": wrapped(Target, "_answer", _untold),
    "waits again after a timer": wrapped(Coordinator, "_on_timer", _patient),
    "limit told with new tokens only": wrapped(SequenceState, "news", _never_resumed),
}
SEEDS_TO_CATCH = 1000


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that is blind to one of the known bugs."""
    PLANTED[bug](monkeypatch)
    assert any(failure(seed) for seed in range(SEEDS_TO_CATCH))


DIRECTED: dict[str, tuple[Patch, Callable[[], None]]] = {
    "open leaves the fence": (
        wrapped(SequenceState, "open", _open_unfenced),
        test_coordinator.test_block_past_the_end_of_the_chain_reopens_the_draft,
    ),
    "last token compared only": (
        wrapped(_Chain, "disagreement", _last_token_only),
        test_workers.test_coalesced_commits_whose_last_token_agrees_by_chance,
    ),
    "incarnation not checked": (
        wrapped(Coordinator, "_current", _any_incarnation),
        test_coordinator.test_messages_of_a_former_incarnation_change_nothing,
    ),
    "lost is forgotten": (
        wrapped(Coordinator, "_on_lost", _lost_is_forgotten),
        test_coordinator.test_no_work_for_a_worker_whose_end_was_told_before_its_beginning,
    ),
    "every commit drops the step": (
        wrapped(Draft, "outdates", lambda *_: True),
        test_workers.test_draft_in_mid_text_catches_up_with_a_target_that_does_not_wait,
    ),
    "no fence": (
        wrapped(SequenceState, "take_block", _fenceless),
        test_coordinator.test_block_of_an_abandoned_chain_is_dropped,
    ),
    "paused before it was opened": (
        wrapped(SequenceState, "chain_limits", _paused_while_opening),
        test_observation.test_a_draft_that_is_being_opened_is_not_paused,
    ),
    "one timer for all awaited tokens": (
        wrapped(Coordinator, "_on_block", _one_timer_for_all),
        test_observation.test_a_kept_promise_ends_its_timer,
    ),
    "verdict applied twice": (
        wrapped(Coordinator, "_answered", _any_extend),
        test_coordinator.test_late_or_doubled_verdict_is_ignored,
    ),
}


@pytest.mark.parametrize("bug", DIRECTED)
def test_planted_bug_is_caught_by_its_own_test(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What random schedules hit once in thousands needs a test that hits it always."""
    patch, test = DIRECTED[bug]
    test()
    patch(monkeypatch)
    with pytest.raises(AssertionError):
        test()
