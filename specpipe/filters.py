"""From a model's logits to the law that tokens are drawn from: biases, penalties, filters.

The order is that of transformers' generation, with OpenAI's penalties where vLLM has them:
logit_bias, repetition_penalty, frequency_penalty, presence_penalty; then, unless the temperature is
0, temperature, top_k, top_p, min_p. Each sees what those before it left.

This module draws nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from specpipe.models.interface import Logits, OutputIds
from specpipe.sampling import Sampling


@dataclass(frozen=True, eq=False)
class Law:
    """A distribution over the tokens that survived the filters.

    Attributes:
        ids: rising, one for each score; None where every token of the vocabulary survived.
        scores: float64[n], logarithms of the chances but for a constant; the largest is 0.
    """

    ids: OutputIds | None
    scores: NDArray[np.float64]

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """exp(scores): float64[n]. Of a whole vocabulary they take longer than drawing a token."""
        weights: NDArray[np.float64] = np.exp(self.scores)
        return weights

    def __len__(self) -> int:
        return len(self.scores)

    def index(self, token: int) -> int | None:
        """Where a token stands; None if it was ruled out."""
        if self.ids is None:
            return token if token < len(self) else None
        at = int(np.searchsorted(self.ids, token))
        return at if at < len(self) and self.ids[at] == token else None

    def keep(self, kept: NDArray[np.bool_] | NDArray[np.int64]) -> "Law":
        """The law of some of the tokens, chosen by a mask or by rising indices."""
        ids = np.arange(len(self))[kept] if self.ids is None else self.ids[kept]
        return Law(ids, self.scores[kept])

    def chances(self) -> NDArray[np.float64]:
        """The weights, made to sum to 1."""
        law: NDArray[np.float64] = self.weights / self.weights.sum()
        return law

    def rough_chance(self, index: int) -> float:
        """A token's chance, to within a millionth of it."""
        with np.errstate(over="ignore"):
            total = np.exp(self.scores.astype(np.float32)).sum(dtype=np.float64)
        return min(1.0, math.exp(self.scores[index]) / float(total))


_LEAST_WEIGHT = 1e-290  # the likeliest token weighs 1


def adjusted(logits: Logits, sampling: Sampling, tokens: Sequence[int], position: int) -> Logits:
    """Logits after bias and penalties: the same array if there are none.

    Repetition counts the prompt too (Keskar et al., CTRL, arXiv:1909.05858); frequency and presence
    count only what was written after it, as OpenAI's API does.

    Args:
        logits: float32[vocabulary], of the token at `position`.
        sampling: the request's.
        tokens: the sequence; what stands at `position` and after it is not looked at.
        position: where the token is to stand.
    """
    if not sampling.adjusts:
        return logits
    logits = logits.copy()
    ids = [token for token in sampling.bias_ids if token < len(logits)]
    logits[ids] += np.array(sampling.bias_values[: len(ids)], dtype=np.float32)
    if not sampling.penalises:
        return logits
    assert position <= len(tokens), "penalties need every token before the position"
    before = np.array(tokens[:position], dtype=np.int64)
    seen = np.unique(before)
    raw = logits[seen]
    penalty = np.float32(sampling.repetition_penalty)
    logits[seen] = np.where(raw < 0, raw * penalty, raw / penalty)
    written, counts = np.unique(before[sampling.prompt_length :], return_counts=True)
    logits[written] -= np.float32(sampling.frequency_penalty) * counts.astype(
        np.float32
    ) + np.float32(sampling.presence_penalty)
    return logits


def filtered(logits: Logits, sampling: Sampling, ids: OutputIds | None = None) -> Law:
    """The law of adjusted logits at the request's temperature, above 0.

    `ids` are those of the logits, where not every token of the vocabulary has one.

    - top_k: the k likeliest, and what ties with the last of them.
    - top_p: the fewest likeliest whose chances reach p; of equals the lowest ids first (Holtzman et
      al., arXiv:1904.09751).
    - min_p: what is at least p times as likely as the likeliest (Nguyen et al., arXiv:2407.01082).
    """
    scores = logits.astype(np.float64)
    scores -= scores.max()
    with np.errstate(over="ignore"):
        scores /= sampling.temperature
    law = Law(ids, scores)
    if 0 < sampling.top_k < len(scores):
        law = law.keep(scores >= np.partition(scores, -sampling.top_k)[-sampling.top_k])
    if sampling.top_p < 1:
        law = law.keep(_nucleus(law, sampling.top_p))
    if sampling.min_p > 0:
        law = law.keep(law.weights >= sampling.min_p)  # the likeliest weighs 1
    return law


def likeliest(law: Law, count: int) -> Law:
    """The `count` likeliest tokens of a law alone; of equals the lowest ids.

    Tokens without any chance, or with one that float64 can hardly hold, are none of them.
    """
    if law.weights.min() < _LEAST_WEIGHT:
        law = law.keep(law.weights >= _LEAST_WEIGHT)
    if len(law) <= count:
        return law
    least = np.partition(law.weights, -count)[-count]
    above = np.flatnonzero(law.weights > least)
    ties = np.flatnonzero(law.weights == least)[: count - len(above)]
    return law.keep(np.sort(np.concatenate([above, ties])))


def _nucleus(law: Law, top_p: float) -> NDArray[np.int64]:
    """Rising indices of the nucleus.

    Tokens with less than (1 - p) / n of the mass have less than 1 - p together, and come last: they
    are never in it. Sorting only the others is what makes this cheap.
    """
    mass = law.weights.sum()
    rough = np.flatnonzero(law.weights >= mass * (1 - top_p) / len(law.weights) * 0.999)
    order = rough[np.argsort(-law.weights[rough], kind="stable")]
    before = np.cumsum(law.weights[order]) - law.weights[order]
    inside = order[before < top_p * mass]
    return np.sort(inside if len(inside) else order[:1])
