"""How several sequences share a pass: guesses as long as they raise tokens per second."""

import itertools

import pytest

from specpipe.elastic import Elastic
from specpipe.policy import Judged, Situation, Verified
from specpipe.sharing import best_blocks

ROWS = 80


def times(first: float, row: float) -> list[float]:
    """Seconds of passes by their rows; the first eight cost the same, as on CPUs."""
    return [first + row * max(0, rows - 8) for rows in range(ROWS)]


@pytest.mark.parametrize("row", [0.0, 0.05, 0.2, 1.0])
@pytest.mark.parametrize(
    "chances", [[[0.9, 0.9, 0.2], [0.5], []], [[0.1], [0.99, 0.3]], [[0.6] * 4] * 4]
)
def test_no_other_blocks_write_faster(chances: list[list[float]], row: float) -> None:
    """Blocks chosen for each sequence by itself, as if the row cost nothing or all."""

    def rate(counts: tuple[int, ...]) -> float:
        expected = float(len(chances))
        for each, count in zip(chances, counts, strict=True):
            product = 1.0
            for chance in each[:count]:
                product *= chance
                expected += product
        return expected / (0.1 + times(1.0, row)[len(chances) + sum(counts)])

    counts, expected = best_blocks(chances, times(1.0, row), 0.1)
    best = max(map(rate, itertools.product(*(range(len(each) + 1) for each in chances))))
    assert rate(tuple(counts)) == pytest.approx(best)
    assert expected / (0.1 + times(1.0, row)[len(chances) + sum(counts)]) == pytest.approx(best)


def taught(row: float, step: float = 0.1) -> Elastic:
    """A rule that has seen passes of four sequences and up to 12 rows, and draft steps."""
    policy = Elastic()
    for _ in range(20):
        policy.drafted(step)
    for rows in [4, 6, 8, 12] * 8:
        seconds = 1 + row * (rows - 4)
        policy.verified(Verified(0, 1, 0, seconds, alone=False, sequences=4, rows=rows))
    guesses = [Judged(0, i, 0, 0.8, i % 5 > 0, 0.0, 0.0) for i in range(200)]
    policy.judged(guesses + [Judged(0, i, 0, 0.2, i % 5 == 0, 0.0, 0.0) for i in range(200)])
    return policy


def situation(*confidences: float, may_wait: bool = False) -> Situation:
    return Situation(confidences, 10, may_wait)


def test_likely_guesses_go_along_and_unlikely_ones_do_not() -> None:
    """A wrong row for one sequence is time that all pay."""
    situations = [situation(0.8, 0.8), situation(0.2), situation(), situation(0.8)]
    cheap = taught(0.001).decide_all(situations)
    assert [decision.send for decision in cheap] == [2, 1, 0, 1]
    dear = taught(0.16).decide_all(situations)
    assert [decision.send for decision in dear] == [1, 0, 0, 1]
    dearest = taught(1.0).decide_all(situations)
    assert [decision.send for decision in dearest] == [0, 0, 0, 0]


def test_a_first_guess_is_waited_for_where_it_takes_next_to_no_time() -> None:
    """Two sequences whose drafts begin anew at each verdict would always go without."""
    situations = [situation(may_wait=True), situation(0.8), situation(0.8), situation(0.8)]
    soon = taught(0.01, step=0.02).decide_all(situations)
    assert {decision.send for decision in soon} == {None}
    late = taught(0.01, step=0.9).decide_all(situations)
    assert None not in {decision.send for decision in late}
    all_of_them = taught(0.01, step=0.3).decide_all([situation(may_wait=True)] * 4)
    assert {decision.send for decision in all_of_them} == {None}, "one pass guesses for all four"


def test_a_model_that_slows_the_target_more_than_it_helps_comes_to_rest() -> None:
    """Eight sequences fill a pass; a draft beside it takes bandwidth from all of them."""
    for slowed, rests in ((1.5, True), (1.0, False)):
        policy = taught(0.0)
        resting = 0
        for turn in range(800):
            decisions = policy.decide_all([situation(0.8), situation(0.8)])
            works = any(decision.ahead for decision in decisions)
            resting += turn >= 400 and not works
            for accepted in (1, 0) if works else (0, 0):
                seconds = slowed if works else 1.0
                policy.verified(
                    Verified(0, 1, accepted, seconds, alone=not works, sequences=2, rows=4)
                )
        assert (resting > 300) == rests


def test_a_sequence_alone_is_decided_about_as_before() -> None:
    """What was learned of shared passes says nothing of how long its own takes."""
    policy = taught(0.1)
    assert policy.costs.passes.seen == 0
    assert policy.decide_all([situation(0.8)]) == [policy.decide(situation(0.8))]
