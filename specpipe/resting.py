"""Whether the draft's model rests, because the target writes faster without it.

Beside a model at work, the target has less memory bandwidth, or waits. What that costs and brings
is tried now and then: the model while it rests, the target without it while it works; ever more
rarely while the answer stays the same.

Where guesses can be looked up as well, each pass beside a model at work is held against what it
would have been without: the tokens up to the model's first guess, in the time that such a pass
takes while the model rests. Both are of the same text, so a few passes tell them apart. Where
there is nothing but the model, what it brings follows from the plan.
"""

from specpipe.costs import Costs
from specpipe.semi_markov import Plan

_TRIAL = 24  # passes of a trial of the model
_ENOUGH = 8  # passes of it that show what is clearly slower
_CLEARLY = 0.8
_PROBE = 4  # passes of the target without the model
_FIRST, _LONGEST, _LONGEST_FREE = 64, 1024, 256  # passes to the next trial
_MOST_CONTENTION = 1.6  # by how much a working model can be thought to slow the target
_MOST_FREE = 2.0  # how many tokens a pass look-ups can be thought to bring
_SLOW = 1.5  # a model of which fewer steps fit into a pass is tried later, not first


class Resting:
    """See above.

    Attributes:
        now: it rests.
        has_free_guesses: whether there are guesses all the same, by looking up.
    """

    def __init__(self) -> None:
        self.now = self.has_free_guesses = False
        self._probing = self._trying = False
        self._tried = False
        self._until_probe = self._rest = _FIRST
        self._left = _ENOUGH

    def note_pass(self) -> None:
        """One pass of the target more."""
        self._left -= 1

    @property
    def due(self) -> bool:
        """Whether a trial, a probe or a rest is over."""
        return self._left <= 0

    def consider(self, plan: Plan, costs: Costs) -> bool:
        """Change sides, if that is better or must be found out; whether a trial begins."""
        if self.now:
            if self.due:
                self.now, self._trying = False, not self._probing
                self._left = _TRIAL if self._trying else self._until_probe
                self._tried |= self._trying
                return self._trying
        elif not self._pays(plan, costs):
            self.now, self._probing, self._left = True, False, self._rest
            longest = _LONGEST_FREE if self.has_free_guesses else _LONGEST
            self._rest = min(2 * self._rest, longest)
        elif self.due:
            self._rest, self._trying, self._left = _FIRST, False, self._until_probe
            bound = _MOST_CONTENTION * (_MOST_FREE if self.has_free_guesses else 1)
            if plan.rate * plan.problem.passes[0] < bound:
                self.now = self._probing = True
                self._left = _PROBE
                self._until_probe = min(2 * self._until_probe, _LONGEST)
        return False

    def _pays(self, plan: Plan, costs: Costs) -> bool:
        """Whether the model is worth its work, as far as is known."""
        alone, problem = costs.alone_rate.value, plan.problem
        if not self.has_free_guesses:
            early = self._trying and not self.due
            return early or alone is None or plan.rate >= alone
        if not self._tried and problem.passes[0] < _SLOW * problem.step:
            return False
        without = costs.without_rate
        if without.passes < _ENOUGH:
            return True
        early = without.passes < _TRIAL and not self.due
        least = (without.value or 0.0) * (_CLEARLY if early else 1.0)
        return (costs.working_rate.value or 0.0) >= least
