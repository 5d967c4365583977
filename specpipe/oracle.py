"""`oracle`: what could be gained at most, if each token's fate were known beforehand.

A *run* is what lies between two wrong guesses: L right ones, then the target's own token. Whatever
is done, the draft begins anew after it, so each run can be finished on its own, in the least time.
With x as in semi_markov.py and V(L, x) the least time for a run of which L right guesses are left,

    V(L, x) = min of  waiting for a token:            (floor(x) + 1 - x) t_d + V(L, floor(x) + 1)
                      sending m <= floor(x) tokens:   T(m) + V(L - m - 1, x + T(m) / t_d - m - 1)

where sending all L ends the run, and a draft that has not yet made token m + 1 begins anew. No
wrong token is ever sent, and the draft is paused at the end of its run. Exact for durations without
jitter and messages without latency; longer runs than _LONGEST are treated as this long.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specpipe.dispatch import Unlearned
from specpipe.policy import Decision, Situation

_GRAIN = 20  # grid points per token: row costs of a tenth fall on them
_LONGEST = 64
_TIE = 1e-6

Floats = NDArray[np.float64]


class Oracle(Unlearned):
    """See Policy; for the simulator only.

    Args:
        right: whether the guess for each position is right.
        step: seconds of a draft step.
        passes: seconds until the verdict on m tokens, for m = 0 to at least _LONGEST.
    """

    def __init__(self, right: Sequence[bool], step: float, passes: Sequence[float]) -> None:
        self._runs = _runs(right)
        self._step, self._passes = step, passes
        self._times: list[Floats] = []
        for run in range(_LONGEST + 1):
            self._times.append(self._solve(run))

    def decide(self, situation: Situation) -> Decision:
        """See Policy."""
        run = min(self._runs[situation.committed], _LONGEST)
        waiting = min(len(situation.confidences), run, situation.largest_block)
        x = min(len(situation.confidences) + min(situation.step_age / self._step, 0.99), run)
        pause = max(0, run - len(situation.confidences))
        times = [self._send(run, m, x) for m in range(waiting + 1)]
        best = min(range(waiting + 1), key=times.__getitem__)
        if situation.may_wait and waiting < run:
            waits = (waiting + 1 - x) * self._step + self._at(run, waiting + 1)
            if waits < times[best] - _TIE * self._step:
                return Decision(None, pause)
        return Decision(best, pause)

    def _send(self, run: int, m: int, x: float) -> float:
        """The time until the end of the run, if m tokens are sent in state x."""
        seconds = self._passes[m]
        if m == run:
            return seconds
        end = min(x + seconds / self._step, run)
        return seconds + self._at(run - m - 1, end - m - 1 if end + _TIE >= m + 1 else 0.0)

    def _at(self, run: int, x: float) -> float:
        times = self._times[run]
        at = min(max(x * _GRAIN, 0.0), len(times) - 1.0)
        below = min(int(at), max(len(times) - 2, 0))
        part = at - below
        return float(times[below] * (1 - part) + times[min(below + 1, len(times) - 1)] * part)

    def _solve(self, run: int) -> Floats:
        """V(run, x) on the grid from 0 to `run`."""
        x = np.arange(run * _GRAIN + 1) / _GRAIN
        times = np.full(len(x), np.inf)
        for m in range(run + 1):
            sent = slice(m * _GRAIN, None)
            times[sent] = np.minimum(times[sent], self._sent(run, m, x[sent]))
        for waiting in range(run - 1, -1, -1):  # waiting leads to larger x only
            here = slice(waiting * _GRAIN, (waiting + 1) * _GRAIN)
            delay = (waiting + 1 - x[here]) * self._step
            times[here] = np.minimum(times[here], delay + times[(waiting + 1) * _GRAIN])
        return times

    def _sent(self, run: int, m: int, x: Floats) -> Floats:
        seconds = self._passes[m]
        if m == run:
            return np.full(len(x), seconds)
        end = np.minimum(x + seconds / self._step, run)
        after = np.where(end + _TIE >= m + 1, np.maximum(end - m - 1, 0.0), 0.0)
        later = self._times[run - m - 1]
        return seconds + np.interp(after, np.arange(len(later)) / _GRAIN, later)


def _runs(right: Sequence[bool]) -> list[int]:
    """How many right guesses follow each other from each position on."""
    runs, length = [0] * (len(right) + 1), 0
    for position in range(len(right) - 1, -1, -1):
        length = length + 1 if right[position] else 0
        runs[position] = length
    return runs
