"""What is noted of one answer: enough to compute every figure of a report from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from specpipe.completion import Completion


@dataclass(frozen=True, slots=True)
class Figures:
    """What one answer came to. Counts are as in RequestMetrics; times in seconds.

    Attributes:
        answer: a hash of its token ids, to compare answers by.
        finish_reason: see Completion.
        prompt_tokens, tokens: of the prompt and of the answer.
        cached_tokens: of the prompt, what was there before; about none, or the time is no good.
        seconds: from the request to the last token, the reading of the prompt included.
        first_token_s, per_token_s: to the first token, and from one to the next after it.
        forwards, drafted, sent, accepted, useful, rollbacks: see RequestMetrics.
        verifying_s, overlap_s: of verifications, and of these while the draft computed.
        target_idle, draft_idle: shares of the whole time; None where there is no such model.
        messages, message_bytes: between the coordinator and the workers.
        positions: for each position in a block, how many guesses there were compared with the
            target's token, those before them being right, and how many were right themselves.
    """

    answer: str
    finish_reason: str
    prompt_tokens: int
    tokens: int
    seconds: float
    cached_tokens: int = 0
    first_token_s: float | None = None
    per_token_s: float | None = None
    forwards: int = 0
    drafted: int = 0
    sent: int = 0
    accepted: int = 0
    useful: int = 0
    rollbacks: int = 0
    verifying_s: float = 0.0
    overlap_s: float = 0.0
    target_idle: float | None = None
    draft_idle: float | None = None
    messages: int = 0
    message_bytes: int = 0
    positions: list[list[int]] = field(default_factory=list)

    @classmethod
    def of(cls, completion: Completion) -> "Figures":
        """The figures of a pipeline's answer."""
        metrics = completion.metrics
        return cls(
            answer=answer_hash(completion.token_ids),
            finish_reason=completion.finish_reason,
            prompt_tokens=metrics.prompt_tokens,
            tokens=metrics.completion_tokens,
            seconds=metrics.seconds,
            cached_tokens=metrics.cached_tokens,
            first_token_s=metrics.time_to_first_token,
            per_token_s=metrics.time_per_output_token,
            forwards=metrics.target_forwards,
            drafted=metrics.drafted,
            sent=metrics.sent,
            accepted=metrics.accepted,
            useful=metrics.useful,
            rollbacks=metrics.rollbacks,
            verifying_s=metrics.verifying.total(),
            overlap_s=metrics.verifying.common(metrics.drafting),
            target_idle=metrics.target_idle,
            draft_idle=metrics.draft_idle,
            messages=metrics.messages,
            message_bytes=metrics.message_bytes,
            positions=reached(metrics.blocks, completion.token_ids),
        )

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the answer by the whole time."""
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Measurement:
    """One answer, and which: `prompt` and `repeat` count from 0."""

    contender: str
    prompt: int
    repeat: int
    figures: Figures

    @property
    def key(self) -> tuple[str, int, int]:
        """What there is one measurement of."""
        return self.contender, self.prompt, self.repeat


def answer_hash(token_ids: Sequence[int]) -> str:
    """A short name of an answer: equal for equal tokens, and else different."""
    return hashlib.sha256(",".join(map(str, token_ids)).encode()).hexdigest()[:16]


def reached(blocks: Sequence[Sequence[int]], token_ids: Sequence[int]) -> list[list[int]]:
    """For each position in a block, how many guesses were compared, and how many were right.

    A guess behind a wrong one is compared with nothing.

    Args:
        blocks: as in RequestMetrics, the tokens of each judged block.
        token_ids: of the answer.
    """
    counts: list[list[int]] = []
    start = 0
    for block in blocks:
        written = token_ids[start:]
        same = 0
        while same < min(len(block), len(written)) and block[same] == written[same]:
            same += 1
        for position in range(min(same + 1, len(block))):
            if position == len(counts):
                counts.append([0, 0])
            counts[position][0] += 1
            counts[position][1] += position < same
        start += same + 1
    return counts
