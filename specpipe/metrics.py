"""What one request cost and what speculation brought it.

Rates are None where they have no meaning: without a draft, or before anything was counted.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

Source = Literal["model", "ngram", "past"]
"""Where a guess comes from: the draft model, the sequence itself, or past outputs."""

SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(slots=True)
class Spans:
    """Stretches of time of one worker, in order and without overlap; seconds."""

    begun: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    def add(self, begun: float, ended: float) -> None:
        """Append a stretch that begins no earlier than the last one ended."""
        if self.ended:
            begun = max(begun, self.ended[-1])
        if ended > begun:
            self.begun.append(begun)
            self.ended.append(ended)

    def total(self) -> float:
        """Seconds in all."""
        return sum(self.ended) - sum(self.begun)

    def covers(self, moment: float) -> bool:
        """Whether a moment lies in one of the stretches."""
        i = bisect_right(self.begun, moment) - 1
        return i >= 0 and moment < self.ended[i]

    def common(self, other: "Spans") -> float:
        """Seconds that lie in stretches of both."""
        i = j = 0
        seconds = 0.0
        while i < len(self.begun) and j < len(other.begun):
            begun = max(self.begun[i], other.begun[j])
            ended = min(self.ended[i], other.ended[j])
            seconds += max(0.0, ended - begun)
            if self.ended[i] <= other.ended[j]:
                i += 1
            else:
                j += 1
        return seconds


def merged(spans: Iterable[Spans]) -> Spans:
    """When at least one of several was at work."""
    whole = Spans()
    stretches = [pair for each in spans for pair in zip(each.begun, each.ended, strict=True)]
    for begun, ended in sorted(stretches):
        whole.add(begun, ended)
    return whole


@dataclass(slots=True)
class SourceCounts:
    """The guesses of one source: how many arrived, went into blocks, and stood."""

    drafted: int = 0
    sent: int = 0
    accepted: int = 0

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted tokens by tokens sent in blocks."""
        return self.accepted / self.sent if self.sent else None


@dataclass(slots=True)
class RequestMetrics:
    """Counts and times of one request, kept by the coordinator.

    Attributes:
        submitted, first_token, finished: moments on the coordinator's clock; seconds.
        prompt_tokens, completion_tokens: token counts.
        cached_tokens: of the prompt, what an earlier request had left in the target's cache.
        target_forwards: forward passes that gave a verdict, empty blocks included.
        model, ngram, past: the guesses of each source.
        blocks: the tokens of each judged block, as far as they are counted, in order.
        useful: accepted tokens whose draft step began while a verification ran: ordinary
            speculative decoding would have waited for the verdict first.
        rollbacks: commits that contradicted what was drafted.
        stale_blocks: blocks dropped because they continued an abandoned chain.
        protocol_errors: messages that should not have been possible.
        timeouts: times that a promised draft token did not come.
        handovers: seconds from a verdict's leaving the target to the next block's arrival there,
            by the target's clock, where tokens were waiting.
        verifying, prefilling: when the target worked, on passes that gave a verdict and on those
            that only read.
        drafting: when the draft did.
        messages, message_bytes: that the coordinator and the workers exchanged, both ways.
    """

    submitted: float = 0.0
    first_token: float | None = None
    finished: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    target_forwards: int = 0
    model: SourceCounts = field(default_factory=SourceCounts)
    ngram: SourceCounts = field(default_factory=SourceCounts)
    past: SourceCounts = field(default_factory=SourceCounts)
    useful: int = 0
    rollbacks: int = 0
    stale_blocks: int = 0
    protocol_errors: int = 0
    timeouts: int = 0
    blocks: list[list[int]] = field(default_factory=list)
    handovers: list[float] = field(default_factory=list)
    verifying: Spans = field(default_factory=Spans)
    drafting: Spans = field(default_factory=Spans)
    prefilling: Spans = field(default_factory=Spans)
    messages: int = 0
    message_bytes: int = 0

    def note_judged(self, source: Source, begun: float, *, accepted: bool) -> None:
        """Count a token of a block, given the moment at which drafting it began."""
        counts = self.of_source(source)
        counts.sent += 1
        counts.accepted += accepted
        self.useful += accepted and self.verifying.covers(begun)

    def of_source(self, source: Source) -> SourceCounts:
        """The counts of one source."""
        counts: SourceCounts = getattr(self, source)
        return counts

    @property
    def drafted(self) -> int:
        """Tokens that arrived from the draft and continued the chain."""
        return sum(self.of_source(source).drafted for source in SOURCES)

    @property
    def sent(self) -> int:
        """Drafted tokens that were judged in blocks."""
        return sum(self.of_source(source).sent for source in SOURCES)

    @property
    def accepted(self) -> int:
        """Drafted tokens that stand in the output."""
        return sum(self.of_source(source).accepted for source in SOURCES)

    @property
    def wasted(self) -> int:
        """Tokens drafted and never accepted."""
        return self.drafted - self.accepted

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted tokens by tokens sent in blocks."""
        return self.accepted / self.sent if self.sent else None

    @property
    def mean_acceptance_length(self) -> float | None:
        """Committed tokens by target forwards."""
        return self.completion_tokens / self.target_forwards if self.target_forwards else None

    @property
    def overlap(self) -> float | None:
        """Share of verification time in which the draft was computing."""
        seconds = self.verifying.total()
        return self.verifying.common(self.drafting) / seconds if seconds else None

    @property
    def useful_overlap(self) -> float | None:
        """Share of accepted tokens that were drafted while a verification ran."""
        return self.useful / self.accepted if self.accepted else None

    @property
    def seconds(self) -> float:
        """From submission to the last token."""
        return (self.finished or self.submitted) - self.submitted

    @property
    def target_idle(self) -> float | None:
        """Share of the whole time in which the target did nothing."""
        return self._idle(self.verifying.total() + self.prefilling.total())

    @property
    def draft_idle(self) -> float | None:
        """The same for the draft; None where there was none."""
        return self._idle(self.drafting.total()) if self.drafted else None

    def _idle(self, busy: float) -> float | None:
        return max(0.0, 1 - busy / self.seconds) if self.seconds > 0 else None

    @property
    def tokens_per_second(self) -> float | None:
        """Completion tokens by the whole time of the request, its prefill included."""
        return self.completion_tokens / self.seconds if self.seconds > 0 else None

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from submission to the first committed token."""
        return None if self.first_token is None else self.first_token - self.submitted

    @property
    def time_per_output_token(self) -> float | None:
        """Seconds from one token to the next, after the first."""
        if self.first_token is None or self.finished is None or self.completion_tokens < 2:
            return None
        return (self.finished - self.first_token) / (self.completion_tokens - 1)
