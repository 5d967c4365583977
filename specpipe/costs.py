"""What a dispatch rule must know of models and machine, measured as it runs.

All times are the coordinator's own: from sending something to the answer's arrival. So they hold
whatever lies between, be it the channel, other sequences, or a shared memory.
"""

from collections.abc import Sequence

from specpipe.calibration import Average, Calibration
from specpipe.policy import Judged, Verified

_SHRINKAGE = 2.0  # how many observations the line through all blocks is worth against each size's
_LEAST_PART = 0.2  # no pass is taken to be shorter than this part of the mean one
_LEAST_S = 1e-9  # what came at one and the same moment was late before
_OUTLIER = 4.0  # a step this many times longer than usual was held up by something else


class Chances:
    """How often guesses are right, those before them being right.

    By their confidence, or by the position since the draft last began anew.
    """

    _POSITIONS = 16

    def __init__(self) -> None:
        self._by_confidence = Calibration()
        self._by_position = [Average(Calibration.KEEP) for _ in range(self._POSITIONS)]

    def note(self, guesses: Sequence[Judged]) -> None:
        """Learn what became of some guesses."""
        for _, _, offset, confidence, right, _, _ in guesses:
            if right is not None:
                self._by_confidence.note(confidence, right)
                self._by_position[min(offset, self._POSITIONS - 1)].add(float(right))

    def doubt(self) -> None:
        """Let what was learned count for little beside what comes."""
        self._by_confidence.doubt()
        for average in self._by_position:
            average.weight = min(average.weight, Calibration.PRIOR)

    @property
    def mean(self) -> float:
        """Of a guess of which nothing is known yet."""
        return self._by_confidence.mean

    def of_confidence(self, confidence: float) -> float:
        """Of a guess of which the draft thinks so."""
        return self._by_confidence.chance(confidence)

    def of_position(self, offset: int) -> float:
        """Of the guess that so many came before since the draft last began anew."""
        return self._by_confidence.drawn(self._by_position[min(offset, self._POSITIONS - 1)])


class Duration:
    """The mean of some durations, and how much they differ from it.

    Attributes:
        mean: in seconds.
        spread: mean square of the deviation, relative to the mean.
    """

    def __init__(self, keep: float) -> None:
        self.mean = Average(keep)
        self.spread = Average(keep)

    def add(self, seconds: float) -> None:
        """Take one more; one that something else held up counts as _OUTLIER usual ones."""
        mean, seconds = self.mean, max(seconds, _LEAST_S)
        if mean.weight >= 3:
            seconds = min(seconds, _OUTLIER * mean.value)
            self.spread.add((seconds / mean.value - 1) ** 2)
        mean.add(seconds)


class Rate:
    """Tokens per second, of a kind of pass.

    Attributes:
        passes: how many there were.
    """

    def __init__(self, keep: float) -> None:
        self._tokens, self._seconds = Average(keep), Average(keep)
        self.passes = 0

    def add(self, tokens: float, seconds: float) -> None:
        """Take one more pass."""
        self.passes += 1
        self._tokens.add(tokens)
        self._seconds.add(max(seconds, _LEAST_S))

    @property
    def value(self) -> float | None:
        """Tokens per second; None if there was no pass yet."""
        return self._tokens.value / self._seconds.value if self._seconds.weight else None


class PassTimes:
    """Seconds from sending a block to its verdict, by the number of drafted tokens in it.

    A size's own mean is drawn to the straight line through all, the more, the longer ago it was
    tried. Sizes never tried lie on that line, which is flat until two sizes were tried, and becomes
    flat again where hardly any other is: so larger blocks are tried before they are condemned, and
    one that something else held up is not condemned for ever.

    Attributes:
        spread: mean square of the deviation from the size's own mean, relative to it.
    """

    _KEEP = 0.99
    _KEEP_LINE = 0.998
    _FLAT = 0.02  # a variance of sizes that says little of what they cost

    def __init__(self) -> None:
        self._by_count: dict[int, Duration] = {}
        self._notes = 0
        self._tried: dict[int, int] = {}  # how many were noted when a size was tried last
        self._line = [Average(self._KEEP_LINE) for _ in range(4)]  # means of m, t, m m, m t
        self.spread = Average(self._KEEP_LINE)

    @property
    def seen(self) -> float:
        """How many passes, the forgotten ones left out."""
        return self._line[0].weight

    def note(self, count: int, seconds: float) -> None:
        """Learn from one pass."""
        seconds = max(seconds, _LEAST_S)
        self._notes += 1
        self._tried[count] = self._notes
        own = self._by_count.setdefault(count, Duration(self._KEEP))
        own.add(seconds)
        if own.spread.weight:
            self.spread.add((seconds / own.mean.value - 1) ** 2)
        for mean, value in zip(
            self._line, (count, seconds, count * count, count * seconds), strict=True
        ):
            mean.add(value)

    def table(self, most: int) -> tuple[float, ...]:
        """Seconds for 0 to `most` drafted tokens; never falling."""
        m, t, mm, mt = (mean.value for mean in self._line)
        spread = mm - m * m
        slope = max(0.0, (mt - m * t) / (spread + self._FLAT)) if spread > 1e-9 else 0.0
        times, longest = [], 0.0
        for count in range(most + 1):
            line = max(_LEAST_PART * t, t + slope * (count - m))
            if count in self._by_count:
                own, age = self._by_count[count].mean, self._notes - self._tried[count]
                weight = own.weight * self._KEEP**age
                line = (own.value * weight + line * _SHRINKAGE) / (weight + _SHRINKAGE)
            longest = max(longest, line)
            times.append(longest)
        return tuple(times)


class Costs:
    """All that is measured.

    Attributes:
        step: seconds from one drafted token to the next.
        passes, chances: see there.
        alone: passes of the target while no model works beside it.
        alone_rate: what it writes then.
        working_rate, without_rate: what it writes beside a model at work since the latest trial
            began; and what it would have written in the same passes without the model's guesses,
            in the time that they take without it.
    """

    def __init__(self) -> None:
        self.step, self.chances = Duration(0.99), Chances()
        self.passes, self.alone = PassTimes(), PassTimes()
        self.alone_rate = Rate(0.97)
        self._alone_waits = Average(0.98)
        self.begin_trial()
        self._lag = Average(0.98)
        self._overrun = Average(0.98)
        self._residual = Average(0.98)

    def note_restart(self, seconds: float, given_up: tuple[float, float] | None) -> None:
        """The first token after the draft began anew; see Observer.restarted."""
        step = self.step.mean.value
        if not step:
            return
        overrun = 0.0
        if given_up is not None:
            age, overrun = given_up
            self._overrun.add(overrun)
            self._residual.add(max(0.0, step - age))
        self._lag.add(min(seconds - overrun - step, _OUTLIER * step))

    def note_pass(self, verification: Verified) -> None:
        """A verdict came."""
        tokens, seconds = verification.accepted + 1, verification.waited + verification.seconds
        if verification.alone:
            self.alone.note(verification.guesses, verification.seconds)
            self._alone_waits.add(verification.waited)
            self.alone_rate.add(tokens, seconds)
        elif not verification.reading:  # the model has brought nothing yet
            self.working_rate.add(tokens, seconds)
            if self.alone.seen:
                free = verification.free
                usual = self._alone_waits.value + self.alone.table(free)[free]
                self.without_rate.add(min(verification.accepted, free) + 1, usual)
        if verification.guesses or not verification.alone:
            self.passes.note(verification.guesses, verification.seconds)

    def plain(self, *, alone: bool) -> float:
        """Seconds of a pass without guesses, beside a model at work or not."""
        passes = self.alone if alone and self.alone.seen else self.passes
        return passes.table(0)[0] if passes.seen else 0.0

    def begin_trial(self) -> None:
        """Forget most of what is known of the draft."""
        self.chances.doubt()
        self.working_rate, self.without_rate = Rate(0.98), Rate(0.98)

    @property
    def lag(self) -> float:
        """Seconds that beginning anew takes besides a step, and besides finishing the old one."""
        return max(0.0, self._lag.value)

    @property
    def drag(self) -> float:
        """Which part of a step in progress the draft finishes before it begins anew, 0 to 1."""
        if self._residual.value <= 1e-3 * self.step.mean.value:
            return 0.0
        return min(1.0, self._overrun.value / self._residual.value)
