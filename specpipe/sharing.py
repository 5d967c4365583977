"""How several sequences share a pass of the target, under the rule `elastic`.

One sequence alone leaves the target waiting, or not, and that is a decision problem with a future
(elastic.py). Several don't: whatever waits goes into the next pass, and each yields a token of the
target's own in any case. What is left to decide is how many guesses to send along. A guess is worth
the chance that it and all before it stand; it costs the row that it adds to the pass. So they are
taken in the order of that chance, as long as tokens per second rise:

    (sequences + sum of chances) / (seconds between passes + T(rows)).

Between two passes lies what draft, coordinator and channels do. Many sequences can spare that: the
target is told of its next pass shortly before it has ended one, so that it never waits. But then
its guesses come from before the verdict, and where one falls the next pass has none. So this is
tried, as the next thing is.

The draft's model runs ahead for each as far as an unknown guess would still be worth its row. But
it takes memory bandwidth, or cores, from the target. Whether it brings more than that is not
computed but tried: now and then, ever more rarely while the answer stays the same, it rests for
some passes, or works for some.
"""

import heapq
import math
from collections.abc import Sequence

from specpipe.calibration import Average
from specpipe.costs import Costs, PassTimes, Rate
from specpipe.policy import Decision, Situation, Verified
from specpipe.pricing import LONGEST_RUN, prices_of

_MOST_GUESSES = 64  # in a pass
_MOST_AHEAD = 16
_UNKNOWN = 2  # guesses a block, and ahead of it, as long as no pass was measured
_TRIAL = 16  # passes
_ENOUGH, _CLEARLY = 6, 0.9  # passes of one that show what is clearly worse
_BETTER = 1.03  # times as much must be written by waiting, or chance would decide between equals
_FIRST, _LONGEST = 64, 1024  # passes from one trial to the next


class _Trials:
    """One way to do it, or the other: what wrote more when it was last tried.

    Args:
        least: times as much the way that is tried must write, to be gone from then on.

    Attributes:
        now: the way that is gone.
    """

    def __init__(self, *, now: bool, least: float = 1.0) -> None:
        self.now, self._least = now, least
        self._trying = False
        self._left, self._pause = _FIRST, _FIRST
        self._gains = {True: Rate(0.98), False: Rate(0.98)}

    def note(self, gain: float, seconds: float) -> None:
        """So many seconds of a pass brought so much: tokens, or what they take without guesses."""
        self._gains[self.now].add(gain, seconds)

    def note_pass(self) -> None:
        """Another pass begins."""
        self._left -= 1
        if self._left > 0 and not self._fails:
            return
        if not self._trying:
            self.now, self._trying, self._left = not self.now, True, _TRIAL
            self._gains[self.now] = Rate(0.98)
            return
        self._trying = False
        if self._compared > self._least:
            self._pause = _FIRST
        else:
            self.now, self._pause = not self.now, min(2 * self._pause, _LONGEST)
        self._left = self._pause

    @property
    def _fails(self) -> bool:
        """Whether a trial need not go on."""
        return self._trying and self._left <= _TRIAL - _ENOUGH and self._compared < _CLEARLY

    @property
    def _compared(self) -> float:
        """What this way writes, by what the other one does."""
        this, other = self._gains[self.now].value, self._gains[not self.now].value
        return 1.0 if this is None or other is None else this / other


class Sharing:
    """See above.

    Args:
        costs: what is known of guesses and of the draft, kept by others.

    Attributes:
        passes: seconds for which the target works at several sequences, by their rows.
    """

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self.passes = PassTimes()
        self._gap = Average(0.98)
        self._rows, self._rate = Average(0.98), Rate(0.98)
        self._working = _Trials(now=True)
        self._running_ahead = _Trials(now=True, least=_BETTER)
        self._plain = 0.0  # seconds of a token in the latest pass, had it had no guesses

    def note(self, verification: Verified) -> None:
        """A verdict on one of several sequences came."""
        count = verification.sequences
        seconds = verification.waited + verification.seconds
        worked = min(verification.worked or seconds, seconds)
        self.passes.note(verification.rows, worked)
        self._rows.add(verification.rows)
        self._rate.add(verification.accepted + 1, seconds / count)
        if not verification.queued:
            self._gap.add(seconds - worked)
        gain = (verification.accepted + 1) * self._plain
        self._working.note(gain, seconds / count)
        self._running_ahead.note(gain, seconds / count)

    @property
    def runs_ahead(self) -> bool:
        """See Policy."""
        return self._running_ahead.now and self.passes.seen > 0

    def spare(self, rows: int, age: float) -> float:
        """See Policy."""
        return self.passes.table(rows)[rows] - age - self._gap.value

    def prices(self, sequences: int) -> tuple[float, ...]:
        """See Policy: what rows cost besides those that passes have as it is."""
        if not self.passes.seen:
            return (0.0,) * _UNKNOWN
        usual = max(sequences, round(self._rows.value))
        times = self.passes.table(usual + LONGEST_RUN)[usual:]
        return prices_of(self._rate.value or sequences / times[0], times)

    def decide(
        self,
        situations: Sequence[Situation],
        chances: Sequence[Sequence[float]],
        spare: float = 0.0,
    ) -> list[Decision]:
        """What to do about each sequence.

        Args:
            situations: of all that can take part.
            chances: of the waiting tokens of each that may be sent, those before being right.
            spare: see Policy.
        """
        count = len(situations)
        if not self.passes.seen:
            return [Decision(min(len(each), _UNKNOWN), _UNKNOWN) for each in chances]
        times = self.passes.table(count + _MOST_GUESSES + count)
        self._plain = times[count] / count
        gap = 0.0 if self._running_ahead.now else self._gap.value
        # What stands for the target's own token costs no row, and is sent with what follows it.
        lead = [int(each.queued) for each in situations]
        follow = [each[first:] for each, first in zip(chances, lead, strict=True)]
        blocks, expected = best_blocks(follow, times, gap)
        rows = count + sum(blocks)
        rate = expected / (gap + times[rows])
        row_cost = (times[rows + count] - times[rows]) / count
        useful = self._useful(rate * row_cost)
        lacks = (each.may_wait and len(each.confidences) < useful for each in situations)
        if spare > 0 and self._working.now and any(lacks):
            return [Decision(None, useful)] * count
        self._working.note_pass()
        self._running_ahead.note_pass()
        blocks = [sent + first if sent else 0 for sent, first in zip(blocks, lead, strict=True)]
        if not self._working.now:
            return [Decision(sent, 0) for sent in blocks]
        if not any(lead) and self._is_worth_waiting(situations, rate, row_cost):
            return [Decision(None, useful)] * count
        return [
            Decision(sent, max(0, useful + 1 - (len(situation.confidences) - sent)))
            for situation, sent in zip(situations, blocks, strict=True)
        ]

    def _useful(self, least: float) -> int:
        """How many guesses of unknown worth have at least this chance; some are better."""
        if least >= 1:
            return 1
        return min(_MOST_AHEAD, max(1, int(math.log(least or 1e-9) / math.log(self._alpha))))

    def _is_worth_waiting(
        self, situations: Sequence[Situation], rate: float, row_cost: float
    ) -> bool:
        """Whether a first guess for all that have none is worth the time that making them takes."""
        step = self._costs.step.mean
        lacking = [each for each in situations if each.may_wait and not each.confidences]
        if not lacking or not step.weight:
            return False
        worked = max(each.step_age for each in lacking)
        seconds = max(0.0, step.value - worked)  # of one pass for all
        return len(lacking) * self._alpha > rate * (seconds + len(lacking) * row_cost)

    @property
    def _alpha(self) -> float:
        return self._costs.chances.mean


def best_blocks(
    chances: Sequence[Sequence[float]], times: Sequence[float], gap: float
) -> tuple[list[int], float]:
    """How many guesses of each sequence to send, and how many tokens to expect of all.

    Args:
        chances: of each sequence's guesses, those before being right.
        times: seconds of a pass by its rows, for up to len(chances) + _MOST_GUESSES rows.
        gap: seconds from one pass to the next.
    """
    count = len(chances)
    counts, expected = [0] * count, float(count)
    best, best_rate = list(counts), expected / (gap + times[count])
    most = expected
    offers = [(-each[0], i) for i, each in enumerate(chances) if each]
    heapq.heapify(offers)
    rows = count
    while offers and rows < count + _MOST_GUESSES:
        product, i = heapq.heappop(offers)
        expected -= product
        counts[i] += 1
        rows += 1
        if (rate := expected / (gap + times[rows])) > best_rate:
            best, best_rate, most = list(counts), rate, expected
        if counts[i] < len(chances[i]):
            heapq.heappush(offers, (product * chances[i][counts[i]], i))
    return best, most
