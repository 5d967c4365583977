"""The target's side of the protocol: feed tokens, judge a block, keep what was accepted.

One command does it all. The cache holds all committed tokens but the last; an Extend feeds what is
missing and the block, the rows give the target's law at each block position and one beyond, and the
cache is cut back to what was accepted.

This module does not know where blocks come from, nor what a draft is.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

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
from specpipe.sampler import Sampler, logprobs_of


@dataclass(slots=True)
class _Held:
    """A request's place: its slot in the cache, the tokens in there, and how to draw more."""

    slot: int
    sampler: Sampler
    tokens: list[int] = field(default_factory=list)


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
                    cause = f"the target failed: {error}".splitlines()[0][:MAX_TEXT]
                    return [Failed("target", message.request, self._incarnation, cause)]
            case Close(request):
                if request in self._held:
                    self._model.close(self._held.pop(request).slot)
                return [Closed("target", request, self._incarnation)]
        return []

    def _extend(self, message: Extend, idle: float) -> Verdict | Progress:
        held = self._hold(message)
        end = message.start + len(message.tokens)
        if message.start != self._model.length(held.slot):
            raise ProtocolError(
                f"tokens for position {message.start}, but the cache holds "
                f"{self._model.length(held.slot)}"
            )
        rows = max(0, end - message.verify_from + 1)
        begun = self._clock()
        logits = self._model.forward(held.slot, message.tokens, rows)
        held.tokens[message.start :] = message.tokens
        if not rows:
            return Progress(message.request, self._incarnation, message.extend_id, end)
        assert logits is not None
        first, block = message.verify_from, message.tokens[len(message.tokens) - rows + 1 :]
        accepted, token = judge(
            logits, block, first, held.sampler, laws=message.laws, tokens=held.tokens
        )
        self._model.truncate(held.slot, first + accepted)
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
        )

    def _hold(self, message: Extend) -> _Held:
        if message.request not in self._held:
            self._held[message.request] = _Held(self._model.open(), Sampler(message.sampling))
        return self._held[message.request]
