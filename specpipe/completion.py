"""What a request came to: its text, and what it cost."""

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from specpipe.messages import Origin
from specpipe.metrics import SOURCES, RequestMetrics
from specpipe.sampling import TokenLogprobs
from specpipe.stopping import FinishReason


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request.

    Attributes:
        text: what was written, special tokens left out, up to a stop text.
        token_ids: all committed tokens after the prompt, an end token included.
        finish_reason: `stop` at an end token, `length` at max_tokens or the end of the context,
            `abort`, or `error`.
        cause: one line, empty unless the reason is `error`.
        seed: that the tokens were drawn with; the same one gives the same output again.
        sample: which of the request's answers this is, from 0.
        origins: whether each token is an accepted guess, recovered or bonus.
        logprobs: for each token, if they were asked for.
        metrics: counts and times.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    cause: str
    seed: int
    sample: int
    origins: list[Origin]
    logprobs: list[TokenLogprobs] | None
    metrics: RequestMetrics

    def figures(self) -> dict[str, Any]:
        """The completion as plain values for JSON; None is what has no meaning without a draft."""
        metrics = self.metrics
        drafted = metrics.drafted > 0
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "prompt_tokens": metrics.prompt_tokens,
            "cached_tokens": metrics.cached_tokens,
            "completion_tokens": metrics.completion_tokens,
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "sample": self.sample,
            "logprobs": None if self.logprobs is None else [asdict(each) for each in self.logprobs],
            "seconds": metrics.seconds,
            "tokens_per_second": metrics.tokens_per_second,
            "time_to_first_token_s": metrics.time_to_first_token,
            "acceptance_rate": metrics.acceptance_rate,
            "mean_acceptance_length": metrics.mean_acceptance_length if drafted else None,
            "target_forwards": metrics.target_forwards,
            "drafted_tokens": metrics.drafted if drafted else None,
            "wasted_tokens": metrics.wasted if drafted else None,
            "sources": self._by_source() if drafted else None,
            "rollbacks": metrics.rollbacks if drafted else None,
            "overlap": metrics.overlap if drafted else None,
            "useful_overlap": metrics.useful_overlap if drafted else None,
            "handover_ms": median(metrics.handovers) * 1000 if metrics.handovers else None,
        }

    def _by_source(self) -> dict[str, dict[str, Any]]:
        """For each source of guesses that had any: how many, and what became of them."""
        counts = {source: self.metrics.of_source(source) for source in SOURCES}
        return {
            source: asdict(each) | {"acceptance_rate": each.acceptance_rate}
            for source, each in counts.items()
            if each.drafted
        }
