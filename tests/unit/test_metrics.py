"""Figures: stretches of time against counting moment by moment, and rates that have no meaning."""

import random

import pytest

from specpipe.metrics import RequestMetrics, Spans

END = 60


def random_spans(rng: random.Random) -> tuple[Spans, set[int]]:
    """Stretches between whole seconds, and the seconds that they cover."""
    spans, moment = Spans(), 0
    seconds: set[int] = set()
    while moment < END:
        begun, ended = moment, moment + rng.randint(0, 5)  # may reach into the next one
        spans.add(float(begun), float(ended))
        seconds |= set(range(begun, ended))
        moment += rng.randint(0, 4)
    return spans, seconds


@pytest.mark.parametrize("seed", range(40))
def test_spans_are_what_counting_seconds_gives(seed: int) -> None:
    """Overlap is the figure that the whole design is judged by."""
    rng = random.Random(seed)
    (first, a), (second, b) = random_spans(rng), random_spans(rng)
    assert first.total() == len(a)
    assert first.common(second) == second.common(first) == len(a & b)
    assert first.common(first) == len(a)
    for second_ in range(END):
        assert first.covers(second_ + 0.5) == (second_ in a)
        assert first.covers(float(second_)) == (second_ in a), "begins included, ends not"


def test_doubled_stretches_count_once() -> None:
    """A message that arrives twice would make an overlap above one."""
    spans = Spans()
    for begun, ended in ((1.0, 3.0), (1.0, 3.0), (2.0, 4.0), (4.0, 4.0), (9.0, 8.0)):
        spans.add(begun, ended)
    assert spans.total() == 3.0
    assert not spans.covers(4.0)


def test_no_spans() -> None:
    """Nothing was measured: no zero division, no overlap."""
    spans = Spans()
    assert spans.total() == spans.common(Spans([0.0], [9.0])) == 0.0
    assert not spans.covers(0.0)


def test_rates_without_meaning_are_none() -> None:
    """A zero would be read as a bad draft, where there is none."""
    metrics = RequestMetrics(submitted=3.0)
    for name in (
        *("acceptance_rate", "mean_acceptance_length", "overlap", "useful_overlap"),
        *("tokens_per_second", "time_to_first_token", "time_per_output_token"),
        *("target_idle", "draft_idle"),
    ):
        assert getattr(metrics, name) is None, name
    assert metrics.seconds == 0.0
    metrics.ngram.sent = 4
    assert metrics.acceptance_rate == 0.0


def test_rates() -> None:
    """Words have one meaning each: see the documentation of metrics."""
    metrics = RequestMetrics(submitted=1.0, first_token=1.5, finished=6.0)
    metrics.completion_tokens, metrics.target_forwards = 10, 4
    metrics.model.drafted, metrics.ngram.drafted = 8, 4
    metrics.verifying = Spans([2.0, 5.0], [4.0, 7.0])
    metrics.drafting = Spans([3.0], [5.5])
    for begun in (1.0, 2.0, 3.9, 4.0, 5.0):
        metrics.note_judged("model", begun, accepted=True)
    metrics.note_judged("ngram", 6.9, accepted=True)
    metrics.note_judged("ngram", 6.9, accepted=False)
    metrics.note_judged("past", 6.9, accepted=False)
    assert [metrics.of_source(s).accepted for s in ("model", "ngram", "past")] == [5, 1, 0]
    assert metrics.ngram.acceptance_rate == 0.5
    assert (metrics.accepted, metrics.useful, metrics.wasted) == (6, 4, 6)
    assert metrics.acceptance_rate == 0.75
    assert metrics.mean_acceptance_length == 2.5
    assert metrics.overlap == (1.0 + 0.5) / 4
    assert metrics.useful_overlap == 4 / 6
    assert metrics.tokens_per_second == 2.0
    assert metrics.time_to_first_token == 0.5
    assert metrics.time_per_output_token == 4.5 / 9
    metrics.prefilling = Spans([1.0], [1.5])
    assert metrics.target_idle == pytest.approx(0.1)
    assert metrics.draft_idle == pytest.approx(0.5)
