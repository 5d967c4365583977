"""The target's side of the protocol: feed tokens, judge blocks, keep what was accepted.

One command does it all. The cache holds all committed tokens but the last; an Extend feeds what is
missing and the block, the rows give the target's law at each block position and one beyond, and the
cache is cut back to what was accepted. Extends of several requests can share a forward pass. A
Proceed is the next Extend as far as it could be said before the answer to the one before.

This module does not know where blocks come from, nor what a draft is.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specpipe.acceptance import judge
from specpipe.errors import ProtocolError
from specpipe.exhaustion import failure
from specpipe.messages import Message
from specpipe.models.interface import Feed, Logits, SequenceModel
from specpipe.models.slots import Slots, common_length
from specpipe.sampler import Sampler, logprobs_of
from specpipe.worker_messages import (
    Close,
    Closed,
    Extend,
    Failed,
    FromWorker,
    Proceed,
    Progress,
    Verdict,
)


@dataclass(slots=True)
class _Held:
    """A request's place.

    Attributes:
        slot: in the model's cache.
        sampler: how to draw more.
        tokens: what the slot holds; behind the request's own, what an earlier one left there.
        length: how many are the request's own.
        latest: the position and token that followed the latest block, and whether this stood as a
            whole.
    """

    slot: int
    sampler: Sampler
    tokens: list[int]
    length: int = 0
    latest: tuple[int, int, bool] | None = None


@dataclass(slots=True)
class _Work:
    """What an Extend asks for.

    Attributes:
        message: the Extend.
        held: its request's place.
        rows: how many rows of logits it takes.
        reused: how many of its tokens need not be fed.
        logits: the rows, once they are computed.
        error: what went wrong instead.
    """

    message: Extend
    held: _Held
    rows: int
    reused: int
    logits: Logits | None = None
    error: Exception | None = None

    @property
    def fed(self) -> tuple[int, ...]:
        """The tokens to be fed."""
        return self.message.tokens[self.reused :]


class Target:
    """Verifies for as many requests as its model has slots.

    Args:
        model: decides.
        incarnation: of this worker; goes into every message.
        clock: monotonic seconds.

    Raises:
        ValueError: if the model's logits lack columns; they would be taken for other tokens'.
    """

    def __init__(
        self,
        model: SequenceModel,
        incarnation: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if model.output_ids is not None:
            raise ValueError("a target's logits need a column for every token")
        self._model = model
        self._slots = Slots(model)
        self._incarnation = incarnation
        self._clock = clock
        self._held: dict[int, _Held] = {}
        self._gathered: list[Extend | Proceed] = []

    def in_order(self, messages: Sequence[Message]) -> list[Message]:
        """These, which came together, as they are to be handled: a request that ends ends first.

        What it is to do before is in vain.
        """

        def ends(message: Message) -> bool:
            return isinstance(message, Close) and message.request in self._held

        return sorted(messages, key=ends, reverse=True)

    def handle(self, message: Message, idle: float = 0.0) -> list[FromWorker]:
        """Take one message; returns the answers.

        `idle`: seconds between the last answer's leaving and this message's arrival.
        """
        match message:
            case Extend() | Proceed():
                self._gathered.append(message)
                if message.more:
                    return []
                extends, self._gathered = self._gathered, []
                return self._pass(extends, idle)
            case Close(request):
                if held := self._held.pop(request, None):
                    self._slots.give_back(held.slot, held.tokens)
                return [Closed("target", request, self._incarnation)]
        return []

    def _pass(self, messages: Sequence[Extend | Proceed], idle: float) -> list[FromWorker]:
        """Do the work of several of these in one forward pass, and answer each."""
        begun, works = self._clock(), list[_Work]()
        answers: list[FromWorker] = []
        for extend in filter(None, map(self._settled, messages)):
            try:
                works.append(self._prepare(extend))
            except Exception as error:  # one request's trouble must not end the others'
                answers.append(self._failed(extend, error))
        self._compute([work for work in works if work.fed])
        for work in works:
            try:
                if work.error:
                    raise work.error
                answers.append(self._answer(work, begun, idle))
            except Exception as error:
                answers.append(self._failed(work.message, error))
        return answers

    def _settled(self, message: Extend | Proceed) -> Extend | None:
        """What is to be done; nothing if there is nothing to go on from, since that failed."""
        if isinstance(message, Extend):
            return message
        held = self._held.get(message.request)
        if held is None or held.latest is None:
            return None
        position, token, whole = held.latest
        return message.after(position, token, whole=whole)

    def _prepare(self, message: Extend) -> _Work:
        held = self._hold(message)
        if message.start != held.length:
            raise ProtocolError(
                f"tokens for position {message.start}, but the cache holds {held.length}"
            )
        rows = max(0, message.start + len(message.tokens) - message.verify_from + 1)
        return _Work(message, held, rows, self._reuse(held, message, rows))

    def _compute(self, works: Sequence[_Work]) -> None:
        """The forward pass; where it fails, one for each, so that only the culprit fails."""
        if not works:
            return
        try:
            found = self._model.forward_all(
                [Feed(work.held.slot, work.fed, work.rows) for work in works]
            )
        except Exception as error:
            if len(works) == 1:
                works[0].error = error
                return
            for work in works:
                self._compute([work])
            return
        assert found is not None
        for work, logits in zip(works, found, strict=True):
            work.logits = logits
            work.held.tokens += work.fed

    def _answer(self, work: _Work, begun: float, idle: float) -> Verdict | Progress:
        message, held, rows = work.message, work.held, work.rows
        request, extend_id = message.request, message.extend_id
        held.length = end = message.start + len(message.tokens)
        if not rows:
            ended = self._clock()
            return Progress(request, self._incarnation, extend_id, end, begun, ended, work.reused)
        logits = work.logits
        assert logits is not None
        first, block = message.verify_from, message.tokens[len(message.tokens) - rows + 1 :]
        accepted, token = judge(
            logits, block, first, held.sampler, laws=message.laws, tokens=held.tokens
        )
        held.length = first + accepted
        held.latest = held.length, token, accepted == len(block)
        self._cut(held, held.length)
        count = held.sampler.sampling.logprobs
        decided = [] if count is None else [*block[:accepted], token]
        return Verdict(
            request,
            self._incarnation,
            extend_id,
            accepted,
            token,
            begun,
            self._clock(),
            idle,
            tuple(logprobs_of(row, t, count or 0) for row, t in zip(logits, decided, strict=False)),
            work.reused,
        )

    def _failed(self, message: Extend, error: Exception) -> Failed:
        if held := self._held.get(message.request):
            held.tokens.clear()  # who knows what is in there
            held.latest = None
        return Failed("target", message.request, self._incarnation, failure("target", error))

    def _hold(self, message: Extend) -> _Held:
        if message.request not in self._held:
            if message.sampling is None:
                raise ProtocolError("tokens of a request whose beginning never came")
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
