"""`elastic`: never the wrong choice, without a parameter, from what it measures."""

import random
from dataclasses import replace

import pytest

from specpipe.costs import PassTimes
from specpipe.elastic import Elastic
from specpipe.pace import DraftState
from specpipe.policy import Decision, Judged, Situation, Verified
from specpipe.policy_comparison import Scene, simulate
from specpipe.semi_markov import Problem, solve
from specpipe.simulated_workers import Hardware
from specpipe.simulator import ConstantFates, ReplayedFates, Simulation

TOKENS = 5000


def run(hardware: Hardware, fates, tokens: int = TOKENS) -> tuple[float, Elastic, Simulation]:
    """The speedup over the target alone; the policy as it was at the end."""
    policy = Elastic()
    simulation = Simulation(policy, hardware, fates, tokens)
    outcome = simulation.run()
    return outcome.tokens_per_second * hardware.pass_seconds(1), policy, simulation


def learned(acceptance: float = 0.8, c: float = 5.0, row_cost: float = 0.1) -> Elastic:
    """An Elastic that has seen steps of one second and passes of c seconds."""
    policy, rng = Elastic(), random.Random(1)
    for _ in range(3000):
        policy.drafted(1.0)
        guesses = rng.randrange(9)
        policy.verified(Verified(0, guesses, 0, c * (1 + row_cost * guesses), alone=False))
        right = rng.random() < acceptance
        policy.judged([Judged(0, 0, rng.randrange(9), 0.5, right, 0.0, 0.0)])
    policy.restarted(1.0, (0.5, 0.0))
    policy.reflect()
    return policy


POINTS = [(2, 0.8, 0.0), (10, 0.6, 0.0), (5, 0.9, 0.1)]
MORE_POINTS = [(c, a, r) for c in (2, 3, 5, 10, 20) for a in (0.5, 0.9) for r in (0.0, 0.1)]
RIVALS = ("take_all", "serial:2", "serial:4", "serial:7", "pearl:2", "pearl:5", "pearl:8")


def assert_best(c: float, acceptance: float, row_cost: float, tokens: int, **changes) -> None:
    hardware = replace(Hardware.of_ratio(c, row_cost), **changes)
    scene = Scene(hardware, acceptance)
    ours = simulate(scene, "elastic", tokens, seed=5).speedup
    for rival in RIVALS:
        assert ours >= 0.99 * simulate(scene, rival, tokens, seed=5).speedup, rival


@pytest.mark.parametrize(("c", "acceptance", "row_cost"), POINTS)
def test_no_tuned_rule_is_better(c, acceptance, row_cost):
    """The reason for its being: whoever tunes another rule must not gain anything."""
    assert_best(c, acceptance, row_cost, 4000)


@pytest.mark.slow
@pytest.mark.parametrize(("c", "acceptance", "row_cost"), MORE_POINTS)
@pytest.mark.parametrize("changes", [{}, {"grain": 1.0, "jitter": 0.05}, {"latency": 2e-4}])
def test_no_tuned_rule_is_better_anywhere(c, acceptance, row_cost, changes):
    """Nor at the corners of the grid, without droppable steps, or over a slow channel."""
    assert_best(c, acceptance, row_cost, 12_000, **changes)


@pytest.mark.parametrize("row_cost", [0.0, 0.1])
@pytest.mark.parametrize("c", [2, 20])
def test_a_bad_draft_costs_next_to_nothing(c, row_cost):
    """At an acceptance of 0.05 it may lose 2 % to the target alone, trials included."""
    speedup, _, _ = run(Hardware.of_ratio(c, row_cost), ConstantFates(0.05, 2, TOKENS + 70))
    assert speedup >= 0.98


def test_it_finds_out_what_the_machine_is_like():
    """With wrong costs it would be right about another machine."""
    hardware = replace(Hardware.of_ratio(6.4, 0.05, grain=1.0), latency=1e-4)
    _, policy, _ = run(hardware, ConstantFates(0.75, 2, TOKENS + 70))
    assert policy.plan is not None
    found = policy.plan.problem
    assert found.step == pytest.approx(1e-3, rel=0.02)
    for guesses in (0, 4, 8):
        expected = hardware.pass_seconds(guesses + 1) + 2e-4
        assert found.passes[guesses] == pytest.approx(expected, rel=0.03)
    assert found.acceptance == pytest.approx(0.75, abs=0.04)
    assert found.lag == pytest.approx(0.2, abs=0.1)
    assert found.drag > 0.8


def test_it_rests_the_draft_where_that_slows_the_target_and_tries_again():
    """Two models on one memory bus: speculation that does not pay must stop, yet not for ever."""
    hardware = replace(Hardware.of_ratio(1.5), contention=0.4)
    bad, tokens = ConstantFates(0.2, 2, TOKENS + 70), TOKENS
    speedup, _, simulation = run(hardware, bad, tokens)
    assert speedup > 0.95
    assert speedup > 1.25 * simulate(Scene(hardware, 0.2), "take_all", tokens, 2).speedup
    metrics = simulation.outcome.metrics
    assert metrics.overlap is not None
    assert metrics.overlap < 0.25, "the draft works on"
    turning = ReplayedFates([(0.5, bad.right(i)) for i in range(tokens)] + [(0.5, True)] * tokens)
    better, _, simulation = run(hardware, turning, 2 * tokens)
    assert simulation.outcome.metrics.overlap > 0.3, "never tried again"
    assert better > speedup + 0.03


def test_decisions_follow_from_confidences_once_these_have_proved_true():
    """Tokens that are hardly ever right are not worth their rows."""
    policy, rng = learned(), random.Random(3)
    for _ in range(2000):
        confidence = rng.choice((0.05, 0.97))
        right = rng.random() < confidence
        policy.judged([Judged(0, 0, 3, confidence, right, 0.0, 0.0)])
    sure, unsure = ([c] * 4 for c in (0.97, 0.05))
    assert policy.decide(Situation(sure, 50, may_wait=False)).send == 4
    assert policy.decide(Situation(unsure, 50, may_wait=False)).send == 0
    assert policy.decide(Situation([0.97, 0.97, 0.05, 0.97], 50, may_wait=False)).send == 2


def test_hidden_values_change_nothing():
    """Under the rejection rule a choice by a token's own confidence makes the output lossy."""
    policy, rng = learned(), random.Random(4)
    for _ in range(2000):
        confidence = rng.random()
        policy.judged([Judged(0, 0, rng.randrange(8), confidence, rng.random() < confidence, 0, 0)])
    seen = set()
    for _ in range(50):
        confidences = [rng.random() for _ in range(5)]
        situation = Situation(confidences, 50, may_wait=True, step_age=0.5, values_hidden=True)
        seen.add(policy.decide(situation))
    assert len(seen) == 1
    shown = {policy.decide(Situation([rng.random()] * 5, 50, may_wait=True)) for _ in range(50)}
    assert len(shown) > 1, "it does not look at confidences at all"


def test_it_keeps_to_what_is_legal():
    """Waiting for what can't come ends with a timer; too large a block runs over the context."""
    policy = learned(c=20.0, row_cost=0.0)
    assert policy.decide(Situation([], 50, may_wait=True)).send is None
    assert policy.decide(Situation([], 50, may_wait=False)).send == 0
    assert policy.decide(Situation([0.5] * 9, 3, may_wait=False)).send == 3
    assert policy.decide(Situation([0.5] * 2, 0, may_wait=False)).send == 0
    assert policy.decide(Situation([0.5] * 60, 60, may_wait=True)).send is not None


def test_before_anything_is_measured_it_does_not_wait():
    assert Elastic().decide(Situation([0.5] * 2, 9, may_wait=True)) == Decision(2)
    assert Elastic().decide(Situation([], 9, may_wait=True)) == Decision(0)


def test_a_solution_is_kept_while_the_costs_stand_still(monkeypatch):
    """Solving takes milliseconds: at every verdict it would cost what it gains."""
    policy = learned()
    solved: list[Problem] = []
    monkeypatch.setattr("specpipe.elastic.solve", solved.append)
    for _ in range(200):
        policy.drafted(1.0)
        policy.verified(Verified(0, 3, 0, 6.5, alone=False))
        policy.reflect()
    assert solved == []


def test_a_size_never_seen_is_not_thought_to_cost_nothing():
    """The line through two sizes may fall below zero at a third: an endless rate, and a crash."""
    passes = PassTimes()
    for _ in range(9):
        passes.note(1, 6.0)
        passes.note(4, 25.0)
    times = passes.table(6)
    assert times[0] > 1.0
    assert list(times) == sorted(times)
    assert solve(Problem(1.0, times, 0.5)).rate < 1.0


# -- guesses that are free


def free_passes(policy: Elastic, row_cost: float, accepted: int = 1) -> None:
    for m in (0, 1, 2, 4, 8, 16):
        for _ in range(20):
            policy.verified(Verified(0, m, min(m, accepted), 1 + row_cost * m, alone=True))


def calibrated(policy: Elastic) -> Elastic:
    rng = random.Random(5)
    for _ in range(4000):
        confidence = rng.choice((0.05, 0.25, 0.55, 0.95))
        policy.judged([Judged(0, 0, 0, confidence, rng.random() < confidence, 0.0, 0.0)])
    return policy


@pytest.mark.parametrize(
    ("confidences", "row_cost", "expected"),
    [
        ([0.95] * 8, 0.1, 8),
        ([0.95, 0.95, 0.05, 0.95], 0.1, 2),
        ([0.25], 0.1, 1),
        ([0.05], 0.5, 0),
        ([0.05], 0.0, 1),
        ([], 0.1, 0),
    ],
)
def test_a_free_guess_is_sent_if_it_is_worth_its_row(confidences, row_cost, expected):
    """Where nothing is computed there is no step to measure, and no plan: it must not send all."""
    policy = calibrated(Elastic())
    free_passes(policy, row_cost)
    situation = Situation(confidences, 50, may_wait=False, free_guesses=True)
    assert policy.decide(situation).send == expected


def at_rest() -> Elastic:
    """A rule that has found out that its draft's model does not pay."""
    policy = calibrated(learned(acceptance=0.02, c=1.0, row_cost=0.1))
    free_passes(policy, 0.1)
    for _ in range(400):
        policy.verified(Verified(0, 1, 0, 1.3, alone=False))
        policy.judged([Judged(0, 0, 0, 0.5, False, 0.0, 0.0)])
        policy.reflect()
        if policy._resting.now:
            break
    return policy


def test_a_model_that_rests_leaves_look_ups_to_be_sent():
    """Resting meant that nothing was sent: then hybrid would be slower than look-ups alone."""
    policy = at_rest()
    decision = policy.decide(Situation([0.95] * 3, 50, may_wait=False, free_guesses=True))
    assert decision == Decision(3, 0)


def test_the_target_guesses_itself_while_the_model_rests_and_only_then():
    """Beside a draft at work both would guess the same places; beside one at rest, nobody."""
    assert Elastic().prices(1, DraftState.OPEN) == ()
    assert Elastic().prices(1, DraftState.OPENING), "a draft that still reads has no guesses"
    policy = at_rest()
    prices = policy.prices(1, DraftState.OPEN)
    assert prices == policy.prices(1, DraftState.ABSENT)
    assert all(0 < price < 0.5 for price in prices)
    assert policy.prices(4, DraftState.OPEN) == (), "of several each pass takes all drafts' guesses"


def test_a_pass_beside_a_draft_that_reads_is_no_trial_of_its_model():
    """It is slow and brings nothing: a trial of such passes would condemn any model."""
    policy = learned(acceptance=0.5, c=5.0, row_cost=0.1)
    free_passes(policy, 0.1)
    rate, left = policy.costs.working_rate.passes, policy._resting._left
    for _ in range(50):
        policy.verified(Verified(0, 0, 0, 3.0, alone=False, reading=True))
    assert policy.costs.working_rate.passes == rate
    assert policy._resting._left == left


def test_a_size_that_was_held_up_once_is_tried_again():
    """One slow pass at the start, beside others that load, and no guess would ever be sent."""
    policy = Elastic()
    policy.verified(Verified(0, 0, 0, 1.0, alone=True))
    policy.verified(Verified(0, 1, 0, 6.0, alone=True))
    assert policy.prices(1, DraftState.ABSENT)[0] > 1
    tried = []
    for number in range(1000):
        if policy.prices(1, DraftState.ABSENT)[0] < 0.9:
            tried.append(number)
            policy.verified(Verified(0, 1, 1, 1.1, alone=True))
        else:
            policy.verified(Verified(0, 0, 0, 1.0, alone=True))
    assert tried[0] < 300
    assert len(tried) > 500


def hybrid_passes(policy: Elastic, count: int, working_s: float, alone_s: float) -> list[bool]:
    """Passes of a target whose draft looks up as well; in which of them the model worked."""
    worked = []
    for _ in range(count):
        decision = policy.decide(Situation([0.5], 50, may_wait=False, free_guesses=True))
        rests = decision.ahead == 0
        worked.append(not rests)
        policy.drafted(0.9)
        seconds = alone_s if rests else working_s
        policy.verified(Verified(0, 1, 1, seconds, alone=rests, free=1))
        policy.judged([Judged(0, 0, 0, 0.5, True, 0.0, 0.0)])
        policy.reflect()
    return worked


def test_beside_look_ups_a_model_works_only_while_that_is_faster_as_measured():
    """Its guesses may be right and still slow the target down: a plan does not know how much."""
    policy = Elastic()
    worked = hybrid_passes(policy, 1000, working_s=1.5, alone_s=1.0)
    assert sum(worked) < 150
    assert any(worked[200:]), "never tried again"
    worked = hybrid_passes(policy, 2000, working_s=0.5, alone_s=1.0)
    assert sum(worked[1200:]) > 700, "a model that helps is not let in"


def test_a_model_whose_guesses_come_where_nothing_is_found_is_kept_for_them():
    """Texts differ more than the model matters: rates of different passes would not tell."""
    policy, rng = Elastic(), random.Random(3)
    worked = 0
    for count in range(3000):
        lucky = 6 if rng.random() < 0.1 else 0  # a long copy, with or without the model
        decision = policy.decide(Situation([0.5], 50, may_wait=False, free_guesses=True))
        rests = decision.ahead == 0
        worked += (not rests) and count >= 500
        policy.drafted(0.4)
        by_model = 0 if rests or lucky else int(rng.random() < 0.3)
        seconds = 1.0 if rests else 1.1
        guesses = lucky or int(not rests)
        policy.verified(Verified(0, guesses, lucky or by_model, seconds, rests, 0.0, lucky))
        policy.judged([Judged(0, 0, 0, 0.5, bool(lucky or by_model), 0.0, 0.0)])
        policy.reflect()
    assert worked > 2000


def test_a_slow_model_is_not_tried_first():
    """The first answer of a process would be its slowest."""
    worked = hybrid_passes(Elastic(), 60, working_s=1.0, alone_s=1.0)
    assert sum(worked) < 8


def test_solving_takes_no_more_than_its_share_of_the_time(monkeypatch):
    """A solution of 48 guesses takes a quarter of a second, in which a fast target does nothing."""
    solved = []

    def counted(problem: Problem):
        solved.append(problem.most)
        return solve(problem)

    monkeypatch.setattr("specpipe.elastic.solve", counted)
    policy, seconds = Elastic(), 0.0
    for number in range(600):
        taken = 0.008 * (1 + number // 16 % 2)  # a machine that changes all the time
        policy.drafted(taken / 5)
        policy.verified(Verified(4, 4, 4, taken, alone=False))
        policy.judged([Judged(0, 0, i, 0.9, True, 0.0, 0.0) for i in range(4)])
        policy.reflect()
        seconds += taken
    assert 1 < len(solved) <= 2 + seconds / (5e-4 * min(solved) ** 2)
    assert sum(1e-4 * most**2 for most in solved[1:]) < 0.22 * seconds
