"""Intervals: right on average, the same each time, and never bolder than their prompts allow."""

import numpy as np
import pytest

from specpipe.bench.estimates import FEWEST, Estimate, by_prompt, estimate, ratios


def test_interval_covers_the_median_as_often_as_it_says() -> None:
    """An interval that is too narrow calls noise a gain."""
    rng, hits, runs = np.random.default_rng(1), 0, 150
    for _ in range(runs):
        found = estimate(rng.lognormal(0.1, 0.3, 24).tolist())
        hits += found.low <= np.exp(0.1) <= found.high
    assert hits / runs > 0.88


def test_the_same_values_give_the_same_interval() -> None:
    """A report that changes when it is written again can't be believed."""
    values = [1.1, 0.9, 1.3, 1.0, 1.2, 1.5, 0.8]
    assert estimate(values) == estimate(values)
    assert estimate(values).value == 1.1
    assert estimate([2.0]) == Estimate(2.0, 2.0, 2.0, 1)


@pytest.mark.parametrize(
    ("low", "high", "prompts", "shown"),
    [
        (1.01, 1.2, 24, "faster"),
        (0.8, 0.99, 24, "slower"),
        (0.99, 1.2, 24, "neither"),
        (1.0, 1.2, 24, "neither"),
        (1.4, 1.5, FEWEST - 1, "neither"),
        (0.4, 0.5, FEWEST - 1, "neither"),
    ],
)
def test_what_a_ratio_shows(low: float, high: float, prompts: int, shown: str) -> None:
    """Two lucky prompts have the narrowest of all intervals."""
    assert Estimate((low + high) / 2, low, high, prompts).against_one == shown


def test_repeats_count_once_by_their_median() -> None:
    """Prompts that were repeated more often would weigh more."""
    assert by_prompt({(0, 0): 1.0, (0, 1): 9.0, (0, 2): 2.0, (1, 0): 5.0}) == {0: 2.0, 1: 5.0}


def test_ratios_are_of_the_same_prompt_and_repeat() -> None:
    """A machine that was slow in one repeat would look like a slow pipeline."""
    ours = {(0, 0): 30.0, (0, 1): 15.0, (1, 0): 40.0}
    theirs = {(0, 0): 20.0, (0, 1): 10.0, (2, 0): 9.0}
    assert ratios(ours, theirs) == {0: 1.5}
