"""The decision problem's solution against figures got in other ways."""

import math

import pytest

from specpipe.semi_markov import GRAIN, Plan, Problem, solve


def problem(c: float, acceptance: float, row_cost: float = 0.0, most: int = 40, **more) -> Problem:
    """Draft steps of one second."""
    passes = tuple(c * (1 + row_cost * m) for m in range(most + 1))
    return Problem(1.0, passes, acceptance, **more)


def speedup(p: Problem) -> float:
    return solve(p).rate * p.passes[0]


@pytest.mark.parametrize(
    ("c", "acceptance", "row_cost", "expected"),
    [
        (2, 0.9, 0, 1.74),
        (3, 0.8, 0, 1.89),
        (5, 0.9, 0, 3.15),
        (10, 0.7, 0, 2.15),
        (20, 0.8, 0, 3.31),
        (20, 0.8, 0.1, 2.21),
        (5, 0.9, 0.1, 2.59),
    ],
)
def test_rates_are_those_found_by_value_iteration_on_another_model(
    c, acceptance, row_cost, expected
):
    """An error in the equations: a token too many, a step too few. The figures come from a
    prototype that counts whole tokens only, and whose states know no steps in progress."""
    assert speedup(problem(c, acceptance, row_cost)) == pytest.approx(expected, rel=0.012)


@pytest.mark.parametrize(("c", "acceptance"), [(1.0, 0.8), (2.0, 0.6)])
def test_a_draft_that_cannot_be_used_leaves_the_target_alone(c, acceptance):
    """Never below the target alone: an empty block is always possible."""
    p = problem(c, acceptance, row_cost=1.0)
    assert speedup(p) >= 1.0 - 1e-6
    assert speedup(problem(c, 1e-3, row_cost=0.5)) == pytest.approx(1.0, abs=2e-3)


def test_three_states_by_hand():
    """Passes of two steps, at most two tokens ahead, α = 1/2.

    From 0, an empty block: 1 token in 2 s, and with chance 1/2 one token waits then. From 1, that
    token: 1.5 tokens in 2 s, and with chance 1/4 the bonus token is the draft's next; back to 0
    either way. So 1 - 2 R + (1.5 - 2 R) / 2 = 0. Waiting is no better in either state.
    """
    assert solve(Problem(1.0, (2.0, 2.0, 2.0), 0.5)).rate == pytest.approx(1.75 / 3)


def test_values_satisfy_the_optimality_equation_at_the_start():
    """A solver that stops early would still look plausible."""
    p = problem(5, 0.8, most=30)
    plan = solve(p)
    assert plan.value(0) == pytest.approx(0.0, abs=1e-9)
    waits = plan.value(1) - plan.rate * 1.0
    decodes = 1 - plan.rate * 5 + 0.8 * plan.value(4)
    assert max(waits, decodes) == pytest.approx(0.0, abs=1e-3)


def test_more_grid_points_change_nothing(monkeypatch):
    """A grid too coarse would cost speed at every point, unnoticed."""
    p = problem(5, 0.8, 0.1, most=24, drag=1.0, step_spread=0.0025, pass_spread=0.0025)
    coarse = solve(p).rate
    monkeypatch.setattr("specpipe.semi_markov.GRAIN", 4 * GRAIN)
    assert solve(p).rate == pytest.approx(coarse, rel=2e-3)


def test_what_costs_time_costs_speed():
    """A sign error in lag, drag or spread would reward what should be avoided."""
    noise = {"step_spread": 0.0025, "pass_spread": 0.0025}
    best = speedup(problem(5, 0.7, **noise))
    lag, drag = (
        speedup(problem(5, 0.7, **noise, **more)) for more in ({"lag": 1.0}, {"drag": 1.0})
    )
    assert lag < best - 0.05
    assert drag < best - 0.003
    assert drag > lag


def test_interpolation_between_grid_points():
    plan = Plan(problem(2, 0.5, most=1), 1.0, -1, (0.0,) * GRAIN + (2.0,) + (4.0,) * GRAIN)
    assert plan.value(-9) == 0.0
    assert plan.value(0.0) == 2.0
    assert plan.value(0.5 / GRAIN) == pytest.approx(3.0)
    assert plan.value(9) == 4.0
    assert math.isfinite(plan.value(-0.5 / GRAIN))
