"""`elastic`: the dispatch rule that has nothing to tune.

It measures what the machine and the models are like (costs.py), solves the decision problem for it
(semi_markov.py) whenever that has changed, and then decides with each token's own chance: of all
blocks that can be sent now, or after waiting for k more tokens, it takes the one with the largest

    1 + a_1 + a_1 a_2 + ... + (a_1 ... a_m)  -  R (waiting + T(m))  +  E[h(next state)]

tokens, where a_i is the calibrated chance of the i-th waiting token, α that of tokens to come, and
R and h are the solution's rate and values. With all a_i = α this is the solution itself; otherwise
it is one step of policy improvement on it. What h says of the tokens behind a block, if it stands,
is taken so many times as the accepted prefix to be expected of them exceeds that of unknown ones.

Where the target alone is faster, the draft rests, so that it takes no memory bandwidth either, and
is tried again now and then, ever more rarely while it keeps failing.
"""

import math
from collections.abc import Sequence

from specpipe.awaiting import Awaiting
from specpipe.costs import Costs
from specpipe.pace import DraftState
from specpipe.policy import Decision, Judged, Situation, Verified
from specpipe.pricing import LONGEST_RUN, prices_of, worth_their_prices
from specpipe.resting import Resting
from specpipe.semi_markov import TIE, Plan, Problem, solve
from specpipe.sharing import Sharing

_LOOK_EVERY = 16  # verifications, to see whether the costs have moved
_LEAST_SEEN = 2  # steps and passes before the first solution
# Seconds of passes between solutions, for each square of the longest block: solving takes about a
# tenth of a millisecond for each, and the next verdict waits meanwhile.
_BETWEEN_S = 5e-4
_NEGLIGIBLE = 1e-3  # no more tokens are drafted ahead than have this chance to be used
_LEAST_AHEAD, _MOST_AHEAD = 8, 48
_FALLING = 3  # so many longer waits, each worth less than the last, and we look no further
_LATE = 0.99  # of a step; what should have come by now is taken to come at once


class _Rule:
    """A plan made ready for decisions: what depends on the number of sent tokens alone, looked up.

    Attributes:
        plan: that it is made of.
        most: see Problem.
    """

    def __init__(self, plan: Plan) -> None:
        problem = plan.problem
        self.plan, self.most = plan, problem.most
        self._cost = [plan.rate * seconds for seconds in problem.passes]
        self._mean = [seconds / problem.step for seconds in problem.passes]
        self._made = [problem.made(m) for m in range(problem.most + 1)]
        self._anew = plan.value(-problem.lag)

    def worth(
        self, m: int, gain: float, goes_on: float, x: float, promise: float = 1.0
    ) -> tuple[float, int]:
        """What sending m tokens is worth in state x, and the length at which to pause the draft.

        `gain` tokens are expected of it; with chance `goes_on` the m and the one after stand, and
        those behind promise so many times as much as unknown ones.
        """
        best, pause_at = -math.inf, self.most
        for limit in self.plan.problem.pauses(x + self._mean[m]):
            later = 0.0
            for made, weight in self._made[m]:
                later += weight * self._after(m, goes_on * promise, x + made, limit)
            if later > best:
                best, pause_at = later, limit
        return gain - self._cost[m] + best, pause_at

    def _after(self, m: int, goes_on: float, end: float, limit: int) -> float:
        """The expected value of the state after m tokens were judged.

        The draft is at `end` then, or paused at `limit`.
        """
        anew, problem = self._anew, self.plan.problem
        if end >= limit:
            end = limit
        elif problem.drag and (residual := math.ceil(end - TIE) - end) > 0:
            anew = self.plan.value(-problem.lag - problem.drag * residual)
        if end + TIE < m + 1:
            return anew
        return anew + goes_on * (self.plan.value(end - m - 1) - anew)


class Elastic:
    """See Policy; one object serves all sequences of a pipeline."""

    def __init__(self) -> None:
        self.costs = Costs()
        self._rule: _Rule | None = None
        self._unlooked = 0
        self._since = 0.0  # seconds of passes since the latest solution
        self._resting = Resting()
        self._target_guesses = False  # while the model rests
        self._awaiting = Awaiting()
        self._sharing = Sharing(self.costs)

    @property
    def plan(self) -> Plan | None:
        """The solution that it goes by; None until enough is measured."""
        return self._rule.plan if self._rule else None

    # -- what it hears

    def drafted(self, seconds: float) -> None:
        """See Observer."""
        self.costs.step.add(seconds)

    def restarted(self, seconds: float, given_up: tuple[float, float] | None) -> None:
        """See Observer."""
        self.costs.note_restart(seconds, given_up)

    def verified(self, verification: Verified) -> None:
        """See Observer."""
        if verification.sequences > 1:
            self._sharing.note(verification)
            return
        self.costs.note_pass(verification)
        self._awaiting.note(verification, self.costs.plain(alone=verification.alone))
        if not verification.reading:
            self._resting.note_pass()
        self._unlooked += 1
        self._since += verification.waited + verification.seconds

    def judged(self, guesses: Sequence[Judged]) -> None:
        """See Observer."""
        self.costs.chances.note(guesses)

    def reflect(self) -> None:
        """Solve again if the costs have moved; then see whether speculation pays at all."""
        due = self._unlooked >= (_LOOK_EVERY if self._rule else 1)
        if not (due or (self._unlooked and self._resting.due)):
            return
        self._unlooked = 0
        problem = self._problem()
        if problem is None:
            return
        rested = self._since >= _BETWEEN_S * problem.most**2
        if self._rule is None or (rested and _has_moved(self._rule.plan.problem, problem)):
            self._rule, self._since = _Rule(solve(problem)), 0.0
        if self._resting.consider(self._rule.plan, self.costs):
            self.costs.begin_trial()  # what the draft is like may have changed meanwhile

    def _problem(self) -> Problem | None:
        costs, step = self.costs, self.costs.step.mean
        if min(step.weight, costs.passes.seen) < _LEAST_SEEN:
            return None
        alpha = costs.chances.mean
        most = math.ceil(math.log(_NEGLIGIBLE) / math.log(alpha))
        most = min(max(most, _LEAST_AHEAD), _MOST_AHEAD)
        return Problem(
            step.value,
            costs.passes.table(most),
            alpha,
            costs.lag / step.value,
            costs.drag,
            costs.step.spread.value,
            costs.passes.spread.value,
        )

    # -- what it says

    def decide(self, situation: Situation) -> Decision:
        """See Policy."""
        waiting = min(len(situation.confidences), situation.largest_block)
        chances = self._chances(situation, waiting)
        self._resting.has_free_guesses |= situation.free_guesses
        self._target_guesses = situation.target_guesses
        if self._resting.now:
            return Decision(self._free_block(chances, situation), 0)
        if self._rule is None:  # no step of a model measured yet: don't wait
            return Decision(self._free_block(chances, situation))
        return self._best(self._rule, situation, chances)

    def decide_all(self, situations: Sequence[Situation], spare: float = 0.0) -> list[Decision]:
        """See Policy."""
        if len(situations) == 1:
            return [self.decide(situations[0])]
        chances = [
            self._chances(each, min(len(each.confidences), each.largest_block))
            for each in situations
        ]
        return self._sharing.decide(situations, chances, spare)

    def awaits_word(self, sequences: int) -> bool:
        """See Policy."""
        return sequences > 1 or self._awaiting.now

    def runs_ahead(self, sequences: int) -> bool:
        """See Policy."""
        if sequences > 1:
            return self._sharing.runs_ahead
        if self._target_guesses or not self._resting.has_free_guesses:
            return self._resting.now
        works = self._rule is not None and not self._resting.now
        return not (works or self._awaiting.now)

    def spare(self, rows: int, age: float) -> float:
        """See Policy."""
        return self._sharing.spare(rows, age)

    def prices(self, sequences: int, draft: DraftState) -> tuple[float, ...]:
        """See Policy."""
        if draft is DraftState.OPEN and (sequences > 1 or not self._resting.now):
            return ()
        return self._sharing.prices(sequences) if sequences > 1 else self._prices(LONGEST_RUN)

    def _free_block(self, chances: list[float], situation: Situation) -> int:
        """How many waiting tokens to send where all guesses are free and made at once."""
        prices = self._prices(len(chances))
        if not situation.queued:
            return worth_their_prices(chances, prices)
        count = worth_their_prices(chances[1:], prices)
        return count + 1 if count else 0

    def _prices(self, most: int) -> tuple[float, ...]:
        """What each of so many guesses must bring, one sequence running; nothing if none is known.

        The rate is the one that is reached by these prices, so both settle where it is largest.
        """
        passes = self.costs.alone if self.costs.alone.seen else self.costs.passes
        if not passes.seen:
            return (0.0,) * most
        times = passes.table(most)
        return prices_of(self.costs.alone_rate.value or 1 / times[0], times)

    def _chances(self, situation: Situation, waiting: int) -> list[float]:
        chances = self.costs.chances
        if situation.values_hidden:
            return [chances.of_position(situation.offset + i) for i in range(waiting)]
        return [chances.of_confidence(c) for c in situation.confidences[:waiting]]

    def _best(self, rule: _Rule, situation: Situation, chances: list[float]) -> Decision:
        """The decision that is worth most, by the formula above."""
        problem, most, drafted = rule.plan.problem, rule.most, len(situation.confidences)
        waiting, alpha, x = len(chances), problem.acceptance, self._state(problem, situation)
        best, count, pause_at = -math.inf, 0, 0
        product = gain = 1.0
        promises = _promises(chances, alpha)
        for m in range(min(waiting, most) + 1):
            if m:
                product *= chances[m - 1]
                gain += product
            following = chances[m] if m < waiting else alpha
            worth, pause = rule.worth(m, gain, product * following, x, promises[m])
            if worth > best:
                best, count, pause_at = worth, m, pause
        if situation.may_wait:
            delay, falling, last = (waiting + 1 - x) * problem.step, 0, -math.inf
            for m in range(waiting + 1, min(most, situation.largest_block) + 1):
                product *= alpha
                gain += product
                worth = rule.worth(m, gain, product * alpha, float(m))[0] - rule.plan.rate * delay
                if worth > best:
                    return Decision(None, max(1, most - drafted))
                falling = falling + 1 if worth < last else 0
                if falling == _FALLING:
                    break
                last = worth
                delay += problem.step
        return Decision(count, max(0, pause_at - drafted))

    def _state(self, problem: Problem, situation: Situation) -> float:
        """x, as semi_markov.py has it. The next token may be late, but is still to come."""
        step, age = problem.step, situation.step_age
        if situation.cut_age is not None:
            residual = max(0.0, step - situation.cut_age)
            age -= problem.lag * step + problem.drag * residual
        return len(situation.confidences) + min(age / step, _LATE)


def _promises(chances: Sequence[float], alpha: float) -> list[float]:
    """What may be expected of the tokens behind m + 1, m = 0, 1, ..., relative to unknown ones.

    Of tokens of chance b, b', ... an accepted prefix of b + b b' + ... is to be expected; of
    unknown ones, of which there is no end, α / (1 - α).
    """
    unknown = alpha / (1 - alpha)
    expected, promises = unknown, [1.0, 1.0]
    for chance in reversed(chances[1:]):
        expected = chance * (1 + expected)
        promises.append(expected / unknown)
    return promises[::-1]


def _has_moved(old: Problem, new: Problem) -> bool:
    """Whether a solution for the one is not good enough for the other."""
    if abs(new.acceptance - old.acceptance) > 0.005 + 0.05 * (1 - old.acceptance):
        return True
    if abs(new.lag - old.lag) > 0.05 or abs(new.drag - old.drag) > 0.05:
        return True
    if abs(new.step_spread - old.step_spread) > 0.3 * old.step_spread + 1e-4:
        return True
    if abs(new.pass_spread - old.pass_spread) > 0.3 * old.pass_spread + 1e-4:
        return True
    for m in range(0, min(old.most, new.most) + 1, 4):
        if abs(new.passes[m] / new.step - old.passes[m] / old.step) > 0.03 * max(
            1.0, old.passes[m] / old.step
        ):
            return True
    return abs(new.step / old.step - 1) > 0.03
