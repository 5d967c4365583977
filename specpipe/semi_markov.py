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

GRAIN = 8
"""Grid points per token."""

_MOST_ITERATIONS = 50
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
    """

    step: float
    passes: tuple[float, ...]
    acceptance: float
    lag: float = 0.0
    drag: float = 0.0

    @property
    def most(self) -> int:
        """How many tokens may wait."""
        return len(self.passes) - 1


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

    With chance `stays` the state becomes `kept`, otherwise `anew`.
    """

    gain: Floats
    seconds: Floats
    stays: Floats
    kept: Floats
    anew: Floats


def solve(problem: Problem) -> Plan:
    """The best policy's rate and values, by policy iteration."""
    lowest = -math.ceil(problem.lag + problem.drag + 1e-9)
    states = lowest + np.arange((problem.most - lowest) * GRAIN + 1) / GRAIN
    moves = _moves(problem, states)
    kept, anew = _spread(moves.kept, states), _spread(moves.anew, states)
    reference = -lowest * GRAIN
    rows = np.arange(len(states))
    chosen = np.argmax(np.isfinite(moves.gain) * np.arange(1, moves.gain.shape[1] + 1), axis=1)
    rate, values = 0.0, np.zeros(len(states))
    for _ in range(_MOST_ITERATIONS):
        rate, values = _evaluate(moves, kept, anew, chosen, reference)
        worth = moves.gain - rate * moves.seconds
        worth += moves.stays * _at(values, kept) + (1 - moves.stays) * _at(values, anew)
        better = np.argmax(worth, axis=1)
        improves = worth[rows, better] > worth[rows, chosen] + 1e-9
        if not improves.any():
            break
        chosen = np.where(improves, better, chosen)
    return Plan(problem, rate, lowest, tuple(values.tolist()))


def _moves(problem: Problem, states: Floats) -> _Moves:
    alpha, most = problem.acceptance, problem.most
    x, m = states[:, None], np.arange(most + 1.0)[None, :]
    seconds = np.array(problem.passes)[None, :]
    ends = np.minimum(x + seconds / problem.step, most)
    gain = np.where(m <= np.maximum(np.floor(x), 0), (1 - alpha ** (m + 1)) / (1 - alpha), -np.inf)
    seconds = np.broadcast_to(seconds, ends.shape)
    runs = _sends(problem, ends, m, np.ceil(ends - TIE) - np.minimum(ends, np.ceil(ends - TIE)))
    pauses = _sends(problem, np.floor(ends + TIE), m, np.zeros(ends.shape))
    next_token = np.maximum(np.floor(states), 0) + 1
    wait_gain = np.where(next_token <= most, 0.0, -np.inf)[:, None]
    wait_seconds = ((next_token - states) * problem.step)[:, None]
    sure = np.ones((len(states), 1))
    to = np.minimum(next_token, most)[:, None]
    return _Moves(
        np.hstack([wait_gain, gain, gain]),
        np.hstack([wait_seconds, seconds, seconds]),
        np.hstack([sure, runs[0], pauses[0]]),
        np.hstack([to, runs[1], pauses[1]]),
        np.hstack([to, runs[2], pauses[2]]),
    )


def _sends(
    problem: Problem, ends: Floats, m: Floats, residual: Floats
) -> tuple[Floats, Floats, Floats]:
    """For blocks of m tokens, the draft being at `ends` when the verdict comes: the chance that the
    chain goes on, where it is then, and where it is otherwise."""
    stays = np.where(ends + TIE >= m + 1, problem.acceptance ** (m + 1), 0.0)
    return stays, np.maximum(ends - m - 1, 0.0), -(problem.lag + problem.drag * residual)


def _spread(x: Floats, states: Floats) -> tuple[NDArray[np.intp], Floats]:
    """The grid point below, and the weight of the one above."""
    at = np.clip((x - states[0]) * GRAIN, 0, len(states) - 1)
    below = np.minimum(at.astype(np.intp), len(states) - 2)
    return below, at - below


def _at(values: Floats, place: tuple[NDArray[np.intp], Floats]) -> Floats:
    below, part = place
    found: Floats = values[below] * (1 - part) + values[below + 1] * part
    return found


def _evaluate(
    moves: _Moves,
    kept: tuple[NDArray[np.intp], Floats],
    anew: tuple[NDArray[np.intp], Floats],
    chosen: NDArray[np.intp],
    reference: int,
) -> tuple[float, Floats]:
    """Rate and values of a policy: h - P h + R seconds = gain, h[reference] = 0."""
    rows = np.arange(len(chosen))
    stays = moves.stays[rows, chosen]
    system = np.eye(len(chosen))
    for (below, part), chance in ((kept, stays), (anew, 1 - stays)):
        i, w = below[rows, chosen], part[rows, chosen]
        np.subtract.at(system, (rows, i), chance * (1 - w))
        np.subtract.at(system, (rows, i + 1), chance * w)
    system[:, reference] = moves.seconds[rows, chosen]  # in place of h[reference], which is 0
    solution = np.linalg.solve(system, moves.gain[rows, chosen])
    rate = float(solution[reference])
    solution[reference] = 0.0
    return rate, solution
