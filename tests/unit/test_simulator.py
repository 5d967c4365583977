"""The simulator against arithmetic, and the rules of its clock."""

from dataclasses import replace

import pytest

from specpipe.dispatch import make_policy
from specpipe.oracle import Oracle
from specpipe.simulated_workers import Hardware
from specpipe.simulator import ConstantFates, Outcome, ReplayedFates, Simulation

TOKENS = 4000


def simulated(
    policy: str, hardware: Hardware, acceptance: float = 0.7, *, tokens: int = TOKENS, **more
) -> Outcome:
    fates = ConstantFates(acceptance, 3, tokens + 70)
    return Simulation(make_policy(policy), hardware, fates, tokens, **more).run()


def speedup(policy: str, hardware: Hardware, acceptance: float = 0.7, **more) -> float:
    alone = hardware.pass_seconds(1)
    return simulated(policy, hardware, acceptance, **more).tokens_per_second * alone


def test_the_target_alone_takes_a_pass_for_each_token():
    """The unit of all speedups."""
    assert speedup("serial:0", Hardware.of_ratio(7)) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(("length", "row_cost"), [(1, 0.0), (3, 0.0), (6, 0.1)])
def test_serial_decoding_is_what_the_formula_says(length, row_cost):
    """Leviathan et al. 2023: (1 - α^(γ+1)) / (1 - α) tokens in γ steps and one pass."""
    a, c = 0.7, 5.0
    tokens = (1 - a ** (length + 1)) / (1 - a)
    expected = tokens * c / (length + c * (1 + row_cost * length))
    found = speedup(f"serial:{length}", Hardware.of_ratio(c, row_cost), a, tokens=12_000)
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("policy", ["serial:3", "pearl:4", "take_all", "elastic"])
@pytest.mark.parametrize("grain", [0.0, 0.3, 1.0])
def test_the_protocol_runs_without_an_error(policy, grain):
    """A modelled worker that breaks the protocol would only be slower, and blamed on the policy."""
    hardware = replace(Hardware.of_ratio(3.3, 0.05, grain=grain), jitter=0.1, latency=1e-4)
    outcome = simulated(policy, hardware)
    metrics = outcome.metrics
    assert metrics.completion_tokens == TOKENS
    assert metrics.timeouts == metrics.protocol_errors == 0
    assert metrics.drafted >= metrics.sent >= metrics.accepted > 0
    assert len(outcome.marks) == 20


def test_the_same_arguments_give_the_same_run():
    """Nothing may depend on the machine, or on the order of a dictionary."""
    hardware = replace(Hardware.of_ratio(5, 0.1), jitter=0.05)
    first, second = (simulated("elastic", hardware) for _ in range(2))
    assert first == second


def test_steps_that_cannot_be_dropped_cost_time():
    """At c = 2.6 a wrong step is more than half done at each verdict."""
    speeds = [speedup("take_all", Hardware.of_ratio(2.6, grain=g)) for g in (0.0, 0.25, 1.0)]
    assert speeds[0] > speeds[1] > speeds[2]


def test_at_one_moment_a_step_ends_before_a_verdict_comes():
    """c = 2: the second token is there when the first pass ends, and no step is cut in two."""
    dropped, kept = (speedup("take_all", Hardware.of_ratio(2, grain=g)) for g in (0.0, 1.0))
    assert dropped == pytest.approx(kept)


@pytest.mark.parametrize("change", [{"latency": 5e-4}, {"contention": 0.3}])
def test_what_slows_a_machine_slows_its_model(change):
    hardware = Hardware.of_ratio(5)
    assert speedup("take_all", replace(hardware, **change)) < speedup("take_all", hardware) - 0.05


def test_pass_times_lie_on_straight_lines():
    hardware = Hardware(1.0, ((1, 10.0), (4, 16.0), (8, 18.0)))
    assert [hardware.pass_seconds(rows) for rows in (1, 2, 4, 6, 8, 10)] == [10, 12, 16, 17, 18, 19]
    assert Hardware(1.0, ((1, 10.0),)).pass_seconds(9) == 10.0


def test_common_random_numbers():
    """A better draft is right wherever a worse one is, so that comparisons are of policies."""
    worse, better = (ConstantFates(a, 9, 500) for a in (0.4, 0.6))
    assert all(better.right(i) for i in range(500) if worse.right(i))


def test_replayed_guesses_are_met_in_their_order():
    guesses = [(0.9, True), (0.2, False), (0.8, True)]
    fates = ReplayedFates(guesses)
    assert [(fates.confidence(i), fates.right(i)) for i in range(6)] == guesses * 2
    outcome = Simulation(make_policy("serial:2"), Hardware.of_ratio(4), fates, 300).run()
    assert outcome.metrics.completion_tokens == 300


@pytest.mark.parametrize(("c", "acceptance", "row_cost"), [(2, 0.9, 0.0), (10, 0.6, 0.1)])
def test_nobody_beats_the_oracle(c, acceptance, row_cost):
    """An upper bound that is beaten is none: its dynamic programme would be wrong."""
    hardware, tokens = Hardware.of_ratio(c, row_cost), 3000
    fates = ConstantFates(acceptance, 3, tokens + 70)
    right = [fates.right(position) for position in range(tokens + 70)]
    passes = [hardware.pass_seconds(rows) for rows in range(1, 66)]
    bound = Simulation(Oracle(right, hardware.step, passes), hardware, fates, tokens).run()
    assert bound.metrics.sent == bound.metrics.accepted, "it sent a token that it knew to be wrong"
    names = [
        "take_all",
        "elastic",
        *(f"{kind}:{n}" for kind in ("serial", "pearl") for n in (2, 5)),
    ]
    for name in names:
        others = Simulation(make_policy(name), hardware, fates, tokens).run()
        assert others.seconds >= bound.seconds - 1e-9, name
