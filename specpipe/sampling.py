"""From logits to a token, with noise that draft and target share.

The token at absolute position t is `argmax_i log p_i - log E_i`, where the E_i are unit
exponentials that depend on (seed, sample, t, i) alone: the exponential form of the Gumbel-max
trick. Whoever computes the same p therefore draws the same token, whatever was drafted, batched or
restarted on the way there. Temperature 0 is the same rule without noise.

This module does not know which model the logits came from, nor what becomes of the token.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specpipe.errors import SpecpipeError, UserError

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What a user may ask of a completion.

    Attributes:
        max_tokens: most tokens to write, at least 1.
        temperature: 0 is greedy; otherwise logits are divided by it.
        seed: 0 to 2**63 - 1; None lets the pipeline choose one and report it.
        ignore_eos: go on after an end-of-text token, as benchmarks do.

    Raises:
        UserError: for a value out of range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"max_tokens is {self.max_tokens}: ask for at least 1 token")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(
                f"temperature is {self.temperature}: it must be 0 (greedy) or a positive number"
            )
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"seed is {self.seed}: it must lie between 0 and {MAX_SEED}")


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a worker has to know to draw a request's tokens; part of the messages.

    `stop_token_ids` end the sequence when drawn; a draft need not guess past one.
    """

    temperature: float
    seed: int
    sample: int
    stop_token_ids: tuple[int, ...]


def noise_words(seed: int, sample: int, position: int, count: int) -> NDArray[np.uint64]:
    """Random words of the tokens 0 to count - 1 at an absolute position: uint64[count].

    Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) under the
    key (seed, sample) and the counter (token // 4 + 1, position), since numpy counts before it
    draws: word i belongs to token i, so rows of any length agree on their common part, and rows can
    be made in any order.
    """
    generator = np.random.Philox(
        key=np.array([seed, sample], dtype=np.uint64),
        counter=np.array([0, position, 0, 0], dtype=np.uint64),
    )
    words: NDArray[np.uint64] = generator.random_raw(count)
    return words


def uniforms(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Words as numbers strictly between 0 and 1: the upper 52 bits, at the middle of their cell.

    With a bit more the last cell's middle would round to 1. Conversion goes through int64, which
    CPUs do in vector registers, unlike uint64.
    """
    return ((words >> np.uint64(12)).astype(np.int64).astype(np.float64) + 0.5) * 2.0**-52


class Sampler:
    """Draws the tokens of one request; equal samplers draw equal tokens from equal logits."""

    _KEPT_ROWS = 8

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._rows: OrderedDict[int, NDArray[np.float64]] = OrderedDict()

    def choose(self, logits: NDArray[np.float32], position: int) -> int:
        """The token at an absolute position.

        Args:
            logits: float32[vocabulary], for this position.
            position: index in the sequence, the prompt included, of the token to be drawn.

        Raises:
            SpecpipeError: when the logits are not finite at their maximum.
        """
        best = int(logits.argmax())  # the first of equals: ties go to the lowest id
        if not math.isfinite(logits[best]):
            raise SpecpipeError(
                f"the model's logits for position {position} are not numbers: its weights or its "
                "dtype are unfit (try --dtype float32)"
            )
        if self.sampling.temperature == 0:
            return best
        return self._race(logits, position)

    def confidence(self, logits: NDArray[np.float32], token: int) -> float:
        """Probability that `token` has under the logits (at temperature 1 when greedy)."""
        temperature = min(max(self.sampling.temperature or 1.0, 1e-30), 1e30)  # float32's range
        with np.errstate(over="ignore"):
            weights = np.exp((logits - logits.max()) / np.float32(temperature))
        return float(weights[token] / weights.sum(dtype=np.float64))

    def _race(self, logits: NDArray[np.float32], position: int) -> int:
        """argmin E_i / p_i, with the logarithm in E_i taken only where it can matter.

        E = -log(1 - u) is at least u, so u_i / p_i bounds a token's key from below. One exact key,
        that of the smallest bound, rules out all tokens but a handful.
        """
        scores = logits.astype(np.float64)
        scores -= scores.max()
        u = self._uniforms(position, len(logits))
        with np.errstate(divide="ignore", over="ignore"):
            scores /= self.sampling.temperature
            weights = np.exp(scores)
            bounds = u / weights
        first = int(bounds.argmin())
        key = -math.log1p(-u[first]) / weights[first]
        # The margin covers the rounding of the division and of the logarithm.
        near = np.flatnonzero(bounds <= key * (1 + 1e-9))
        exact = scores[near] - np.log(-np.log1p(-u[near]))
        return int(near[exact.argmax()])

    def _uniforms(self, position: int, count: int) -> NDArray[np.float64]:
        """The row of a position, kept for a while: after a rollback it is needed once more."""
        row = self._rows.get(position)
        if row is None or len(row) < count:
            words = noise_words(self.sampling.seed, self.sampling.sample, position, count)
            row = self._rows[position] = uniforms(words)
            if len(self._rows) > self._KEPT_ROWS:
                self._rows.popitem(last=False)
        return row[:count]
