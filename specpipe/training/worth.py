"""What a draft is worth: not how often it is right, but how fast the pair is expected to be."""

from dataclasses import dataclass

from specpipe.bench.passes import ROWS, pass_seconds
from specpipe.models.decoder import Decoder
from specpipe.semi_markov import Problem, solve

_CONTEXT = 200
_LONGEST_SERIAL = 15
_CERTAIN = 0.999  # the solver wants less than certainty


@dataclass(frozen=True, slots=True)
class Times:
    """How long things take, each model alone on its device.

    Attributes:
        step: seconds of a guess.
        passes: seconds of the target's pass, by rows.
    """

    step: float
    passes: dict[int, float]

    def of_rows(self, rows: int) -> float:
        """A pass of any number of rows up to the largest that was timed."""
        known = sorted(self.passes)
        above = next(each for each in known if each >= rows)
        below = max(each for each in known if each <= rows)
        if above == below:
            return self.passes[rows]
        part = (rows - below) / (above - below)
        return self.passes[below] * (1 - part) + self.passes[above] * part


@dataclass(frozen=True, slots=True)
class Expected:
    """Tokens per second relative to the target alone, for guesses of one chance.

    Attributes:
        pipelined: what the dispatch rule reaches on two devices.
        serial: drafting and verifying in turn, with the best draft length.
        length: that length.
    """

    pipelined: float
    serial: float
    length: int


def time_pair(target: Decoder, draft: Decoder) -> Times:
    """Time both models, one after the other."""
    seconds = []
    for model, sizes in ((draft, (1,)), (target, ROWS)):
        slot = model.open()
        context = min(_CONTEXT, model.context_length - max(sizes))
        seconds.append(pass_seconds(model, slot, context, sizes))
        model.close(slot)
    return Times(seconds[0][1], seconds[1])


def expect(times: Times, acceptance: float) -> Expected:
    """What to expect of guesses that are right with this chance, each independently of others."""
    alpha, one = min(acceptance, _CERTAIN), times.of_rows(1)
    passes = tuple(times.of_rows(m + 1) for m in range(max(times.passes)))
    pipelined = solve(Problem(times.step, passes, alpha)).rate
    rates = {
        length: (1 - alpha ** (length + 1)) / (1 - alpha)
        / (length * times.step + times.of_rows(length + 1))
        for length in range(1, _LONGEST_SERIAL + 1)
    }  # fmt: skip
    best = max(rates, key=lambda length: rates[length])
    return Expected(pipelined * one, rates[best] * one, best)
