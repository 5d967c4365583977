"""Medians, and how far to believe them: bootstrap intervals over prompts.

Prompts differ more than repetitions of one prompt do, so it is they that are drawn anew (Efron,
"Bootstrap Methods", 1979; percentile intervals, 95 %). The draws have a fixed seed: the same
measurements give the same interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

DRAWS = 10_000
FEWEST = 6
"""Prompts below which an interval says little."""

Comparison = Literal["faster", "slower", "neither"]
"""What a ratio of speeds shows beyond noise."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median over so many prompts, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float
    prompts: int

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"

    @property
    def against_one(self) -> Comparison:
        """Of a ratio of speeds: what it shows; of few prompts, nothing."""
        if self.prompts >= FEWEST and self.low > 1:
            return "faster"
        return "slower" if self.prompts >= FEWEST and self.high < 1 else "neither"


def estimate(values: Sequence[float]) -> Estimate:
    """The median of some prompts' values, at least one, with its interval."""
    array = np.array(values, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(len(array), size=(DRAWS, len(array)))
    medians = np.median(array[drawn], axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return Estimate(float(np.median(array)), float(low), float(high), len(array))


def by_prompt(values: Mapping[tuple[int, int], float]) -> dict[int, float]:
    """From values by (prompt, repeat) to the median of each prompt's repeats."""
    repeats: dict[int, list[float]] = {}
    for (prompt, _), value in sorted(values.items()):
        repeats.setdefault(prompt, []).append(value)
    return {prompt: median(found) for prompt, found in repeats.items()}


def ratios(
    ours: Mapping[tuple[int, int], float], theirs: Mapping[tuple[int, int], float]
) -> dict[int, float]:
    """By prompt, the median over repeats of one's speed by the other's, where both were measured.

    The two of a ratio were measured within moments of each other, so that a change in the
    machine's speed meets both.
    """
    return by_prompt({key: ours[key] / theirs[key] for key in ours.keys() & theirs.keys()})
