"""The dispatch rule as a semi-Markov decision problem, and its solution.

**State.** One number, x: how many tokens the draft has made past the committed ones, its step in
progress counted by the part that is done. floor(x) tokens wait. When the draft begins anew, x = 0;
x < 0 while it is still held up by a step that it cannot drop, or by messages on their way.

**Actions**, whenever the target is idle:
- *wait* for the next token: takes (floor(x) + 1 - x) t_d and leads to floor(x) + 1;
- *send m* of the floor(x) tokens: takes T(m), and earns the accepted prefix and the target's own
  token, 1 + α + ... + α^m expected. The draft goes on meanwhile, to x' = x + T(m) / t_d. If all m
  stand and the next guess, made by then, is the target's own token too, with chance α^(m+1), what
  is left is x' - m - 1. Otherwise the draft begins anew, at -(lag + drag * (1 - frac x')): `lag` is
  what it takes to tell it and hear from it, `drag` the part of a step in progress that it has to
  finish (0: dropped at once, 1: cannot be dropped), both in steps;
- *send m and pause* the draft after its last step that ends before the verdict: gives up the part
  of a step that frac x' stands for, and is spared the drag.

**Objective.** Tokens per second in the long run, R. With h(x) the value of a state relative to that
of beginning anew, the optimality equation is

    h(x) = max over actions of  E[tokens] - R E[seconds] + E[h(next state)],   h(0) = 0.

Howard's policy iteration solves it: evaluate a policy by linear equations (h and R), take in each
state the action that is best by these values, until nothing changes. x lives on a grid, values
between grid points are interpolated.

**Assumed**: times depend on m alone; guesses are right independently of each other, with one chance
α. elastic.py puts each token's own chance in place of α where it is known, and keeps h for the
future beyond.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GRAIN = 4
"""Grid points per token."""

NODES = (
    (-2.3344142183, 0.0458758548),
    (-0.7419637843, 0.4541241452),
    (0.7419637843, 0.4541241452),
    (2.3344142183, 0.0458758548),
)
"""Gauss-Hermite quadrature: values of a standard normal variable, and their weights."""

DRAG_THAT_MATTERS = 0.05
"""Below, pausing the draft is not looked into."""

_NO_DEVIATION = 1e-4  # tokens
_MOST_ITERATIONS = 50
_GOES_ON = 1 - 1e-5  # the chance that a request doesn't end: so that every state leads to x = 0
TIE = 1e-6
"""Part of a step: what ends at the same moment as a verification counts as done."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What has to be known, or measured.

    Attributes:
        step: seconds of a draft step.
        passes: seconds until the verdict on m drafted tokens; m = 0, 1, ..., as many as may wait.
        acceptance: chance that a guess is right, those before it being right; below 1.
        lag: steps lost whenever the draft begins anew.
        drag: part of the step in progress that it finishes first.
        step_spread, pass_spread: mean squares of the relative deviations of the times above.
    """

    step: float
    passes: tuple[float, ...]
    acceptance: float
    lag: float = 0.0
    drag: float = 0.0
    step_spread: float = 0.0
    pass_spread: float = 0.0

    @property
    def most(self) -> int:
        """How many tokens may wait."""
        return len(self.passes) - 1

    def deviation(self, m: int) -> float:
        """Standard deviation of what the draft makes while m tokens are judged; tokens."""
        made = self.passes[m] / self.step
        return math.sqrt(made * self.step_spread + made * made * self.pass_spread)

    def made(self, m: int) -> tuple[tuple[float, float], ...]:
        """What the draft makes while m tokens are judged, if it runs on: values and weights."""
        mean, deviation = self.passes[m] / self.step, self.deviation(m)
        if deviation < _NO_DEVIATION:
            return ((mean, 1.0),)
        return tuple((mean + z * deviation, weight) for z, weight in NODES)

    def pauses(self, mean: float) -> tuple[int, ...]:
        """At which lengths pausing the draft is worth considering; last, not to pause it."""
        if self.drag < DRAG_THAT_MATTERS:
            return (self.most,)
        below, nearest = math.floor(mean + TIE), math.floor(mean + 0.5)
        found = {min(below, self.most), min(nearest, self.most)}
        return (*found, self.most)


@dataclass(frozen=True, slots=True)
class Plan:
    """The solution.

    Attributes:
        problem: that it solves.
        rate: tokens per second in the long run.
        lowest: the state of the first of the values.
        values: h at the grid points, GRAIN to a token.
    """

    problem: Problem
    rate: float
    lowest: int
    values: tuple[float, ...]

    def value(self, x: float) -> float:
        """h(x), in tokens."""
        at = (x - self.lowest) * GRAIN
        if at <= 0:
            return self.values[0]
        i = int(at)
        if i >= len(self.values) - 1:
            return self.values[-1]
        part = at - i
        return self.values[i] * (1 - part) + self.values[i + 1] * part


@dataclass(frozen=True, slots=True)
class _Moves:
    """All actions in all states: arrays [states, actions]; impossible ones have gain -inf.

    And where they lead, arrays [nodes, states, actions]: with chance `stays` to `kept`, otherwise
    to `anew`.
    """

    gain: Floats
    seconds: Floats
    weights: Floats
    stays: Floats
    kept: "_Places"
    anew: "_Places"


@dataclass(frozen=True, slots=True)
class _Places:
    """States between grid points: the point below, and the weight of the one above."""

    below: NDArray[np.intp]
    part: Floats

    @classmethod
    def on(cls, grid: Floats, x: Floats) -> "_Places":
        """The places of the states x."""
        at = np.clip((x - grid[0]) * GRAIN, 0, len(grid) - 1)
        below = np.minimum(at.astype(np.intp), len(grid) - 2)
        return cls(below, at - below)

    def values(self, values: Floats) -> Floats:
        """Interpolated."""
        found: Floats = values[self.below] * (1 - self.part) + values[self.below + 1] * self.part
        return found


def solve(problem: Problem) -> Plan:
    """The best policy's rate and values, by policy iteration."""
    lowest = -math.ceil(problem.lag + problem.drag + 1e-9)
    states = lowest + np.arange((problem.most - lowest) * GRAIN + 1) / GRAIN
    moves = _moves(problem, states)
    reference = -lowest * GRAIN
    rows = np.arange(len(states))
    largest = np.maximum(states, 0).astype(np.intp)
    chosen = 1 + largest  # send all that waits
    rate, values = 0.0, np.zeros(len(states))
    for _ in range(_MOST_ITERATIONS):
        rate, values = _evaluate(moves, chosen, reference)
        later = moves.stays * moves.kept.values(values)
        later += (1 - moves.stays) * moves.anew.values(values)
        later = _GOES_ON * (moves.weights[:, None, None] * later).sum(axis=0)
        worth = moves.gain - rate * moves.seconds + later
        better = np.argmax(worth, axis=1)
        improves = worth[rows, better] > worth[rows, chosen] + 1e-9
        if not improves.any():
            break
        chosen = np.where(improves, better, chosen)
    return Plan(problem, rate, lowest, tuple(values.tolist()))


def _moves(problem: Problem, states: Floats) -> _Moves:
    """Action 0 waits; then come blocks of 0, 1, ... tokens, for each way to pause the draft."""
    alpha, most = problem.acceptance, problem.most
    x, m = states[:, None], np.arange(most + 1.0)[None, :]
    passes = np.array(problem.passes)
    mean = x + passes[None, :] / problem.step
    deviations = np.array([problem.deviation(count) for count in range(most + 1)])
    noisy = bool(deviations.max() >= _NO_DEVIATION)
    nodes = NODES if noisy else ((0.0, 1.0),)
    limits = [np.full(mean.shape, float(most))]
    if problem.drag >= DRAG_THAT_MATTERS:
        limits += [np.floor(mean + TIE), np.floor(mean + 0.5)]
    next_token = np.maximum(np.floor(states), 0) + 1
    to = np.minimum(next_token, most)[:, None]
    gain = np.where(m <= np.maximum(np.floor(x), 0), (1 - alpha ** (m + 1)) / (1 - alpha), -np.inf)
    stays, kept, anew = [], [], []
    for z, _ in nodes:
        blocks = [_judged(problem, mean + z * deviations, m, limit) for limit in limits]
        stays.append(np.hstack([np.ones(x.shape), *(block[0] for block in blocks)]))
        kept.append(np.hstack([to, *(block[1] for block in blocks)]))
        anew.append(np.hstack([to, *(block[2] for block in blocks)]))
    return _Moves(
        np.hstack([np.where(next_token <= most, 0.0, -np.inf)[:, None], *[gain] * len(limits)]),
        np.hstack(
            [(next_token[:, None] - x) * problem.step]
            + [np.broadcast_to(passes, mean.shape)] * len(limits)
        ),
        np.array([weight for _, weight in nodes]),
        np.stack(stays),
        _Places.on(states, np.stack(kept)),
        _Places.on(states, np.stack(anew)),
    )


def _judged(
    problem: Problem, ends: Floats, m: Floats, limits: Floats
) -> tuple[Floats, Floats, Floats]:
    """What may follow on blocks of m tokens, the draft being at `ends` at the verdict.

    Or at `limits`, where it is paused. Returns the chance that the chain goes on, where it is then,
    and where it is otherwise.
    """
    limits = np.minimum(limits, problem.most)
    residual = np.where(ends < limits, np.maximum(0.0, np.ceil(ends - TIE) - ends), 0.0)
    ends = np.minimum(ends, limits)
    stays = np.where(ends + TIE >= m + 1, problem.acceptance ** (m + 1), 0.0)
    return stays, np.maximum(ends - m - 1, 0.0), -(problem.lag + problem.drag * residual)


def _evaluate(moves: _Moves, chosen: NDArray[np.intp], reference: int) -> tuple[float, Floats]:
    """Rate and values of a policy: h - P h + R seconds = gain, h[reference] = 0."""
    rows = np.arange(len(chosen))
    system = np.eye(len(chosen))
    for node, weight in enumerate(moves.weights * _GOES_ON):
        stays = moves.stays[node, rows, chosen]
        for places, chance in ((moves.kept, weight * stays), (moves.anew, weight * (1 - stays))):
            i, part = places.below[node, rows, chosen], places.part[node, rows, chosen]
            np.subtract.at(system, (rows, i), chance * (1 - part))
            np.subtract.at(system, (rows, i + 1), chance * part)
    system[:, reference] = moves.seconds[rows, chosen]  # in place of h[reference], which is 0
    solution: Floats = np.linalg.solve(system, moves.gain[rows, chosen]).astype(np.float64)
    rate = float(solution[reference])
    solution[reference] = 0.0
    return rate, solution
