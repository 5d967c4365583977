"""One request as the coordinator sees it: what is final, what is guessed, where the workers stand.

The chain is committed + in-flight + waiting tokens, in this order and without gaps. Only two
operations change it: a block from the draft appends to it, a commit moves its front.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from specpipe.messages import Block, Commit, Extend, Open
from specpipe.metrics import RequestMetrics
from specpipe.sampling import GuessLaw, Sampling
from specpipe.stopping import StopRule


class Drafted(NamedTuple):
    """A guess: the token, the draft's confidence, when its step began, its law if the rule asks."""

    token: int
    confidence: float
    begun: float
    law: GuessLaw | None = None


class DraftState(Enum):
    """Where the draft stands with a request."""

    ABSENT = auto()  # not opened, or lost
    OPENING = auto()  # reading the tokens; it can't be waited for yet
    OPEN = auto()
    FAILED = auto()  # the draft reported an error for this request: not opened again


class BlockFate(Enum):
    """What became of a block from the draft."""

    TAKEN = auto()
    STALE = auto()  # it continues a chain that was abandoned
    ERROR = auto()  # it can't have come from a draft that keeps to the protocol


@dataclass(slots=True)
class SequenceState:
    """The state of one request between submission and finish.

    Attributes:
        stop: says where the answer ends.
        committed: the prompt and all final tokens.
        in_flight: the block that the target is judging.
        waiting: drafted tokens not yet sent to the target.
        admitted: whether the target ever gave it a slot; until then it is not drafted for.
        serial: of the latest commit or open; `fence`: blocks that saw less are stale.
        extend: the command that the target has not answered yet.
        target_length: tokens in the target's cache, as far as its answers tell.
        exhausted_at: the serial at which the draft said that it can't go on.
        timer: id of the running timer, while waiting for the draft.
        must_send: a timer fired, so waiting is not allowed until the next extend.
        handover: whether tokens were waiting when the last verdict came, so that a block followed
            it at once.
    """

    request: int
    sampling: Sampling
    stop: StopRule
    prompt_length: int
    max_tokens: int
    committed: list[int]
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    in_flight: list[Drafted] = field(default_factory=list)
    waiting: list[Drafted] = field(default_factory=list)
    admitted: bool = False
    serial: int = 0
    fence: int = 0
    extend: Extend | None = None
    target_length: int = 0
    draft: DraftState = DraftState.ABSENT
    exhausted_at: int = -1
    timer: int | None = None
    must_send: bool = False
    handover: bool = False
    _commit_serials: list[int] = field(default_factory=list)

    @property
    def chain_length(self) -> int:
        """Tokens in the chain."""
        return len(self.committed) + len(self.in_flight) + len(self.waiting)

    def chain(self) -> list[int]:
        """The whole chain's tokens."""
        return self.committed + [d.token for d in self.in_flight + self.waiting]

    def left(self, context_length: int) -> int:
        """Tokens that may still be committed."""
        written = len(self.committed) - self.prompt_length
        return min(self.max_tokens - written, context_length - len(self.committed))

    @property
    def drafting(self) -> bool:
        """Whether the draft is at work, so that another token will come without our doing."""
        return self.draft is DraftState.OPEN and self.exhausted_at < self.serial

    def take_block(self, block: Block) -> BlockFate:
        """Append the part of a block that is new, after comparing the part that is not."""
        if block.serial < self.fence:
            return BlockFate.STALE
        end = self.chain_length
        if block.start > end:
            return BlockFate.ERROR
        earlier = len(block.begun) - len(block.tokens)  # stretches that made no token
        for i, token in enumerate(block.tokens):
            position = block.start + i
            if position < len(self.committed):
                if token != self.committed[position]:
                    self.fence = max(self.fence, self._serial_of(position))
                    return BlockFate.STALE
            elif position < end:
                if token != self._pending(position).token:
                    return BlockFate.ERROR
            else:
                law = block.laws[i] if block.laws else None
                begun = block.begun[earlier + i]
                self.waiting.append(Drafted(token, block.confidences[i], begun, law))
                self.metrics.drafted += 1
        return BlockFate.TAKEN

    def commit(self, tokens: Sequence[int], limit: int) -> Commit:
        """Make tokens final, drop what they contradict, and say so to the draft."""
        self.serial += 1
        start = len(self.committed)
        pending = self.in_flight + self.waiting
        self.committed += tokens
        self._commit_serials += [self.serial] * len(tokens)
        self.in_flight, self.extend = [], None
        if any(token != d.token for token, d in zip(tokens, pending, strict=False)):
            self.waiting = []
            self.fence = self.serial
            self.metrics.rollbacks += 1
        else:
            self.waiting = pending[len(tokens) :]
        return Commit(self.request, self.serial, self.serial, start, tuple(tokens), limit)

    def open(self, limit: int) -> Open:
        """Hand the whole chain to the draft; all blocks made before are stale from here on."""
        self.draft, self.exhausted_at = DraftState.OPENING, -1
        self.serial += 1
        self.fence = self.serial
        tokens, committed = tuple(self.chain()), len(self.committed)
        return Open(self.request, self.serial, tokens, committed, limit, self.sampling)

    def verify(self, extend_id: int, count: int) -> Extend:
        """Send the first `count` waiting tokens, after whatever the target's cache still lacks."""
        self.in_flight, self.waiting = self.waiting[:count], self.waiting[count:]
        self.metrics.sent += count
        self.timer, self.must_send = None, False
        tokens = self.committed[self.target_length :] + [d.token for d in self.in_flight]
        return self._extend(extend_id, tokens)

    def prefill(self, extend_id: int, count: int) -> Extend:
        """Feed the next `count` committed tokens; nothing is judged."""
        return self._extend(
            extend_id, self.committed[self.target_length : self.target_length + count]
        )

    def lose_target(self) -> None:
        """The target's cache is gone; what it was judging waits again."""
        self.waiting = self.in_flight + self.waiting
        self.metrics.sent -= len(self.in_flight)
        self.in_flight, self.extend = [], None
        self.target_length = 0
        self.timer, self.handover = None, False

    def lose_draft(self) -> None:
        """The draft's state is gone; its guesses stay."""
        if self.draft is not DraftState.FAILED:
            self.draft = DraftState.ABSENT
        self.exhausted_at = -1

    def _extend(self, extend_id: int, tokens: Sequence[int]) -> Extend:
        self.extend = Extend(
            self.request,
            extend_id,
            self.target_length,
            tuple(tokens),
            len(self.committed),
            self.sampling,
            tuple(d.law for d in self.in_flight if d.law),
        )
        return self.extend

    def _pending(self, position: int) -> Drafted:
        offset = position - len(self.committed)
        if offset < len(self.in_flight):
            return self.in_flight[offset]
        return self.waiting[offset - len(self.in_flight)]

    def _serial_of(self, position: int) -> int:
        """The serial that committed a position; 0 for the prompt."""
        offset = position - self.prompt_length
        return self._commit_serials[offset] if offset >= 0 else 0
