"""Statistics: they are the run's own figures, and a device is busy no longer than time passes."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specpipe.codec import decode, encode
from specpipe.coordinator import Coordinator
from specpipe.dispatch import make_policy
from specpipe.events import Send
from specpipe.figures import REQUEST_BOUNDS, ROWS, Counts, Figures, Histogram, rows_index
from specpipe.messages import Stats, Submit
from specpipe.metrics import RequestMetrics
from specpipe.statistics import BusyTime, Statistics
from specpipe.stopping import FINISH_REASONS
from specpipe.worker_messages import Block, Extend, Proceed, Ready, Verdict
from tests.toys import sampling
from tests.virtual import World


def watched(seed: int) -> tuple[World, list[Figures]]:
    """A schedule that was run, and what was known after each event; copies, as sent ones are."""
    world = World(seed)
    statistics = Statistics(
        world.coordinator, 0.0, pipeline="specpipe-test", pid=1, settings={"model": "toy"}
    )
    known, handle = [], world.coordinator.handle

    def told(event, now):
        commands = handle(event, now)
        statistics.note(event, commands, now)
        statistics.mark(now)
        sent = decode(encode(Stats(statistics.figures(now))))
        assert isinstance(sent, Stats)
        known.append(sent.figures)
        return commands

    world.coordinator.handle = told
    world.run()
    return world, known


def totals(metrics: list[RequestMetrics]) -> Counts:
    """What requests say of themselves, added up."""
    return Counts(
        prompt_tokens=sum(m.prompt_tokens for m in metrics),
        generation_tokens=sum(m.completion_tokens for m in metrics),
        verdicts=sum(m.target_forwards for m in metrics),
        num_drafts=sum(bool(block) for m in metrics for block in m.blocks),
        num_draft_tokens=sum(m.sent for m in metrics),
        num_accepted_tokens=sum(m.accepted for m in metrics),
        wasted_tokens=sum(m.wasted for m in metrics),
        rollbacks=sum(m.rollbacks for m in metrics),
        stale_blocks=sum(m.stale_blocks for m in metrics),
    )


@pytest.mark.parametrize("seed", range(25))
def test_the_figures_are_those_of_the_requests(seed: int) -> None:
    """A block that is counted twice, or not after a loss: a graph would look as good."""
    world, known = watched(seed)
    counts, times = known[-1].counts, known[-1].times
    finished = list(world.finished.values())
    expected = totals([finish.metrics for finish in finished])
    by_position, reasons = counts.num_accepted_tokens_per_pos, counts.finished
    assert replace(counts, num_accepted_tokens_per_pos=[0] * 8, finished=[0] * 4) == expected
    assert sum(by_position) == counts.num_accepted_tokens
    assert by_position == sorted(by_position, reverse=True)  # none stands behind one that doesn't
    assert reasons == [sum(f.reason == r for f in finished) for r in FINISH_REASONS]
    whole = [f.metrics for f in finished if f.reason in {"stop", "length"}]
    assert times.e2e_request_latency.count == len(whole)
    assert times.e2e_request_latency.total == pytest.approx(sum(m.seconds for m in whole))
    begun = [f.metrics for f in finished if f.metrics.first_token is not None]
    assert times.time_to_first_token.total == pytest.approx(
        sum(m.time_to_first_token or 0.0 for m in begun)
    )


@pytest.mark.parametrize("seed", range(25))
def test_what_adds_up_never_falls(seed: int) -> None:
    """Prometheus takes a fall for a restart, and adds all of it once more."""
    _, known = watched(seed)
    for before, after in itertools.pairwise(known):
        for name in Counts.__dataclass_fields__:
            one, other = getattr(before.counts, name), getattr(after.counts, name)
            if isinstance(one, list):
                assert all(a <= b for a, b in zip(one, other, strict=False)), name
            else:
                assert one <= other, name
        for one, other in zip(before.workers, after.workers, strict=False):
            assert one.busy_seconds <= other.busy_seconds + 1e-9


@pytest.mark.parametrize("seed", range(12))
def test_shares_are_shares(seed: int) -> None:
    """Passes of several sequences counted twice: a device that is busy 140 % of the time."""
    _, known = watched(seed)
    for figures in known:
        for worker in figures.workers:
            assert 0 <= worker.busy <= 1
            assert 0 <= worker.kv_cache_usage <= 1
            assert worker.busy_seconds <= figures.seconds + 1e-9
        told = len(figures.sequences)
        assert told == figures.num_requests_running + figures.num_requests_waiting
        for chance in (figures.recent.acceptance, figures.recent.acceptance_rate):
            assert chance is None or 0 <= chance <= 1
    assert known[-1].sequences == ()


STRETCHES = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 6)).map(lambda pair: (pair[0], sum(pair))),
    max_size=12,
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(STRETCHES)
def test_busy_time_is_the_length_of_the_union(stretches: list[tuple[int, int]]) -> None:
    """In whatever order they are told of, and however they overlap."""
    busy = BusyTime()
    for begun, ended in stretches:
        busy.add(float(begun), float(ended))
    covered = {second for begun, ended in stretches for second in range(begun, ended)}
    assert busy.seconds == len(covered)


class Scripted:
    """A coordinator with two sequences whose verdicts come from here."""

    def __init__(self) -> None:
        self.coordinator = Coordinator(make_policy("take_all"))
        self.statistics = Statistics(self.coordinator, 0.0, pipeline="p", pid=1, settings={})
        self.asked: list[Extend | Proceed] = []  # of the target

    def tell(self, event, now):
        commands = self.coordinator.handle(event, now)
        self.statistics.note(event, commands, now)
        for command in commands:
            if isinstance(command, Send) and isinstance(command.message, Extend | Proceed):
                self.asked.append(command.message)

    def answer(self, begun: float, ended: float, now: float) -> None:
        """A verdict on what the target was asked first."""
        asked = self.asked.pop(0)
        self.tell(Verdict(asked.request, 1, asked.extend_id, 0, 4, begun, ended, 0.0), now)


def test_a_pass_that_two_sequences_share_is_one_pass() -> None:
    """Otherwise batching makes the target look slower, and busy for longer than it was."""
    scripted = Scripted()
    for request in (1, 2):
        scripted.tell(Submit(request, (1, 2, 3), 9, sampling()), 1.0)
    scripted.tell(Ready("target", 1, 2, 64, 5, "cpu:1", (1,)), 1.0)
    for _ in range(2):  # these read the prompts too
        scripted.answer(1.0, 1.5, 1.5)
    for _ in range(2):
        scripted.answer(2.0, 2.25, 2.3)
    figures = scripted.statistics.figures(3.0)
    passes = dict(zip(ROWS, figures.times.verification, strict=True))
    assert {rows: each.count for rows, each in passes.items() if each.count} == {"2": 1}
    assert passes["2"].total == 0.25
    assert figures.workers[0].busy_seconds == 0.75
    assert figures.counts.verdicts == 4
    assert figures.times.request_queue_time.count == 2


def test_only_the_drafts_model_takes_time_for_a_step() -> None:
    """Look-ups among the steps would halve the median."""
    scripted = Scripted()
    block = Block(
        *(1, 1, 1, 3, (4, 4, 4), (0.5,) * 3, ("ngram", "model", "model")),
        *((0.0, 1.0, 1.0, 2.0), (0.5, 1.0, 1.5, 2.25)),
    )
    scripted.tell(block, 3.0)
    step = scripted.statistics.figures(3.0).times.draft_step
    assert (step.count, step.total) == (2, 0.75)


def test_a_restart_and_a_loss_are_seen() -> None:
    scripted = Scripted()
    for incarnation in (1, 2, 4):  # the third never came up
        scripted.tell(Ready("draft", incarnation, 1, 64, 5, "cpu:0", (0,), ("model",)), 1.0)
    (draft,) = scripted.statistics.figures(2.0).workers
    assert (draft.restarts, draft.activity) == (3, "idle")


def test_rates_are_of_the_last_seconds() -> None:
    """At rest the rate of the last minute's work would stand for ever."""
    scripted = Scripted()
    scripted.tell(Ready("target", 1, 2, 64, 5, "cpu:1", (1,)), 0.0)
    scripted.statistics.mark(0.0)
    scripted.tell(Submit(1, (1, 2, 3), 9, sampling()), 1.0)
    scripted.answer(1.0, 2.0, 2.0)
    recent = scripted.statistics.figures(2.0)
    assert recent.recent.tokens_per_second == 0.5
    assert recent.workers[0].busy == 0.5
    for second in range(3, 20):
        scripted.statistics.mark(float(second))
    later = scripted.statistics.figures(20.0)
    assert later.recent.tokens_per_second == later.workers[0].busy == 0.0


def test_rows_fall_into_the_groups_that_they_name() -> None:
    for rows in range(1, 80):
        name = ROWS[rows_index(rows)]
        low, _, high = name.rstrip("+").partition("-")
        assert int(low) <= rows <= (math.inf if "+" in name else int(high or low))


def test_a_histogram_counts_up_to_its_bounds_and_tells_quantiles() -> None:
    """Prometheus' `le` is "less or equal"."""
    times = Histogram.over(REQUEST_BOUNDS)
    assert times.quantile(0.5) is None
    for seconds in (0.01, 0.02, 0.025, 0.2, 1000.0):
        times.add(seconds)
    assert times.counts[:5] == [1, 2, 0, 0, 1]
    assert times.quantile(0.2) == pytest.approx(0.01)
    assert times.quantile(0.6) == pytest.approx(0.025)
    assert times.quantile(1.0) == REQUEST_BOUNDS[-1]
