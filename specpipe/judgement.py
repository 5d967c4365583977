"""What a verdict makes final: tokens, where each comes from, and whether the answer ends there."""

from collections.abc import Sequence
from typing import NamedTuple

from specpipe.messages import Origin
from specpipe.sampling import TokenLogprobs
from specpipe.sequence import SequenceState
from specpipe.step import Drafted
from specpipe.stopping import FinishReason
from specpipe.worker_messages import Verdict


class Decided(NamedTuple):
    """Tokens to commit; `logprobs` if they were asked for, `reason` if these are the last ones."""

    tokens: Sequence[int]
    origins: tuple[Origin, ...]
    logprobs: tuple[TokenLogprobs, ...]
    reason: FinishReason | None


def decide(
    sequence: SequenceState, verdict: Verdict, block: Sequence[Drafted], left: int
) -> Decided:
    """Read the verdict on a block, and count what became of that.

    Args:
        sequence: whose block it is; only its metrics change.
        verdict: accepts no more tokens than the block has.
        block: the guesses that were judged.
        left: how many tokens may still be committed.
    """
    accepted, metrics = verdict.accepted, sequence.metrics
    metrics.target_forwards += 1
    metrics.cached_tokens += verdict.reused
    if sequence.handover:
        metrics.handovers.append(verdict.idle)
    decided = [*(guess.token for guess in block[:accepted]), verdict.token]
    tokens, reason = sequence.stop.cut(decided, left)
    judged = block[: len(tokens)] if reason else block  # nothing counts after the end
    metrics.blocks.append([guess.token for guess in judged])
    for i, guess in enumerate(judged):
        metrics.note_judged(guess.source, guess.begun, accepted=i < accepted)
    metrics.verifying.add(verdict.begun, verdict.ended)
    origins: list[Origin] = ["accepted"] * accepted
    origins.append("bonus" if accepted == len(block) else "recovered")
    count = len(tokens)
    return Decided(tokens, tuple(origins[:count]), verdict.logprobs[:count], reason)
