"""The target's side of the protocol: feed tokens, judge a block, keep what was accepted.

One command does it all. The cache holds all committed tokens but the last; an Extend feeds what is
missing and the block, the rows give the target's law at each block position and one beyond, and the
cache is cut back to what was accepted.

This module does not know where blocks come from, nor what a draft is.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from specpipe.acceptance import judge
from specpipe.errors import ProtocolError
from specpipe.messages import (
    MAX_TEXT,
    Close,
    Closed,
    Extend,
    Failed,
    FromWorker,
    Message,
    Progress,
    Verdict,
)
from specpipe.models.interface import SequenceModel
from specpipe.models.slots import Slots, common_length
from specpipe.sampler import Sampler, logprobs_of


@dataclass(slots=True)
class _Held:
    """A request's place.

    Attributes:
        slot: in the model's cache.
        sampler: how to draw more.
        tokens: what the slot holds; behind the request's own, what an earlier one left there.
        length: how many are the request's own.
    """

    slot: int
    sampler: Sampler
    tokens: list[int]
    length: int = 0


class Target:
    """Verifies for as many requests as its model has slots.

    Args:
        model: decides.
        incarnation: of this worker; goes into every message.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        model: SequenceModel,
        incarnation: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._slots = Slots(model)
        self._incarnation = incarnation
        self._clock = clock
        self._held: dict[int, _Held] = {}

    def handle(self, message: Message, idle: float = 0.0) -> list[FromWorker]:
        """Take one message; returns the answers.

        `idle`: seconds between the last answer's leaving and this message's arrival.
        """
        match message:
            case Extend():
                try:
                    return [self._extend(message, idle)]
                except Exception as error:  # one request's trouble must not end the others'
                    if held := self._held.get(message.request):
                        held.tokens.clear()  # who knows what is in there
                    cause = f"the target failed: {error}".splitlines()[0][:MAX_TEXT]
                    return [Failed("target", message.request, self._incarnation, cause)]
            case Close(request):
                if held := self._held.pop(request, None):
                    self._slots.give_back(held.slot, held.tokens)
                return [Closed("target", request, self._incarnation)]
        return []

    def _extend(self, message: Extend, idle: float) -> Verdict | Progress:
        held = self._hold(message)
        if message.start != held.length:
            raise ProtocolError(
                f"tokens for position {message.start}, but the cache holds {held.length}"
            )
        end = message.start + len(message.tokens)
        rows = max(0, end - message.verify_from + 1)
        begun = self._clock()
        reused = self._reuse(held, message, rows)
        fed = message.tokens[reused:]
        logits = self._model.forward(held.slot, fed, rows) if fed else None
        held.tokens += fed
        held.length = end
        if not rows:
            return Progress(
                message.request,
                self._incarnation,
                message.extend_id,
                end,
                begun,
                self._clock(),
                reused,
            )
        assert logits is not None
        first, block = message.verify_from, message.tokens[len(message.tokens) - rows + 1 :]
        accepted, token = judge(
            logits, block, first, held.sampler, laws=message.laws, tokens=held.tokens
        )
        held.length = first + accepted
        self._cut(held, held.length)
        count = held.sampler.sampling.logprobs
        decided = [] if count is None else [*block[:accepted], token]
        return Verdict(
            message.request,
            self._incarnation,
            message.extend_id,
            accepted,
            token,
            begun,
            self._clock(),
            idle,
            tuple(logprobs_of(row, t, count or 0) for row, t in zip(logits, decided, strict=False)),
            reused,
        )

    def _hold(self, message: Extend) -> _Held:
        if message.request not in self._held:
            slot, tokens = self._slots.take(message.tokens)
            self._held[message.request] = _Held(slot, Sampler(message.sampling), tokens)
        return self._held[message.request]

    def _reuse(self, held: _Held, message: Extend, rows: int) -> int:
        """How many of the tokens need not be fed: an earlier request left them in the slot.

        Cuts off what it left behind them, unless that may be what the next message brings.
        """
        left = held.tokens[message.start :]
        if not left:
            return 0
        reused = min(common_length(left, message.tokens), len(message.tokens) - rows)
        if reused < len(message.tokens):
            self._cut(held, message.start + reused)
        return reused

    def _cut(self, held: _Held, length: int) -> None:
        self._model.truncate(held.slot, length)
        del held.tokens[length:]
