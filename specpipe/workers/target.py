"""The target's side of the protocol: feed tokens, judge a block, keep what was accepted.

One command does it all. The cache holds all committed tokens but the last; an Extend feeds what is
missing and the block, the rows give the target's law at each block position and one beyond, and the
cache is cut back to what was accepted.

This module does not know where blocks come from, nor what a draft is.
"""

import time
from collections.abc import Callable

from specpipe.acceptance import accept_coupled
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
from specpipe.sampling import Sampler


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
        self._slots: dict[int, tuple[int, Sampler]] = {}

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
                if request in self._slots:
                    self._model.close(self._slots.pop(request)[0])
                return [Closed("target", request, self._incarnation)]
        return []

    def _extend(self, message: Extend, idle: float) -> Verdict | Progress:
        slot, sampler = self._slot(message)
        tokens, end = message.tokens, message.start + len(message.tokens)
        if message.start != self._model.length(slot):
            raise ProtocolError(
                f"tokens for position {message.start}, but the cache holds "
                f"{self._model.length(slot)}"
            )
        rows = max(0, end - message.verify_from + 1)
        begun = self._clock()
        logits = self._model.forward(slot, tokens, rows)
        if not rows:
            return Progress(message.request, self._incarnation, message.extend_id, end)
        assert logits is not None
        block = tokens[len(tokens) - rows + 1 :]
        accepted, token = accept_coupled(logits, block, message.verify_from, sampler)
        self._model.truncate(slot, message.verify_from + accepted)
        return Verdict(
            message.request,
            self._incarnation,
            message.extend_id,
            accepted,
            token,
            begun,
            self._clock(),
            idle,
        )

    def _slot(self, message: Extend) -> tuple[int, Sampler]:
        if message.request not in self._slots:
            self._slots[message.request] = (self._model.open(), Sampler(message.sampling))
        return self._slots[message.request]
