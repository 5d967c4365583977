"""The target's side of the protocol: feed tokens, judge blocks, keep what was accepted.

One command does it all. The cache holds all committed tokens but the last; an Extend feeds what is
missing and the block, the rows give the target's law at each block position and one beyond, and the
cache is cut back to what was accepted. Extends of several requests can share a forward pass. A
Proceed is the next Extend as far as it could be said before the answer to the one before.

Where no draft follows, a target may look up blocks for itself: it goes on with a guess at once, and
nobody's word is waited for. What it can expect of a guess it knows; the price of a row is told.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specpipe.acceptance import judge
from specpipe.drafting.drafter import Drafter, Proposal, Sources
from specpipe.errors import ProtocolError
from specpipe.exhaustion import failure
from specpipe.logs import log_of
from specpipe.messages import Message
from specpipe.metrics import Source
from specpipe.models.interface import Feed, Logits, SequenceModel
from specpipe.models.slots import Slots, common_length
from specpipe.pricing import worth_their_prices
from specpipe.sampler import Sampler, logprobs_of
from specpipe.worker_messages import (
    Close,
    Closed,
    Extend,
    Failed,
    FromWorker,
    LookedUp,
    Proceed,
    Progress,
    Verdict,
)

_log = log_of("target")


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
        drafter: where guesses are looked up, if they are.
    """

    slot: int
    sampler: Sampler
    tokens: list[int]
    drafter: Drafter | None
    length: int = 0
    latest: tuple[int, int, bool] | None = None


@dataclass(slots=True)
class _Work:
    """What an Extend asks for.

    Attributes:
        message: the Extend.
        held: its request's place.
        block: the guesses at its end that were looked up.
        rows: how many rows of logits it takes.
        reused: how many of its tokens need not be fed.
        logits: the rows, once they are computed.
        error: what went wrong instead.
    """

    message: Extend
    held: _Held
    block: Sequence[Proposal]
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
        sources: where it may look up guesses itself.
        clock: monotonic seconds.

    Raises:
        ValueError: if the model's logits lack columns; they would be taken for other tokens'.
    """

    def __init__(
        self,
        model: SequenceModel,
        incarnation: int,
        *,
        sources: Sources | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if model.output_ids is not None:
            raise ValueError("a target's logits need a column for every token")
        self._model = model
        self._slots = Slots(model)
        self._incarnation = incarnation
        self._sources = sources
        self._clock = clock
        self._held: dict[int, _Held] = {}
        self._gathered: list[Extend | Proceed] = []

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where guesses of its own come from."""
        return self._sources.names if self._sources else ()

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
                    if held.drafter:
                        held.drafter.close(held.tokens, held.length)
                    self._slots.give_back(held.slot, held.tokens)
                return [Closed("target", request, self._incarnation)]
        return []

    def _pass(self, messages: Sequence[Extend | Proceed], idle: float) -> list[FromWorker]:
        """Do the work of several of these in one forward pass, and answer each."""
        works, answers = list[_Work](), list[FromWorker]()
        for message in messages:
            try:
                if work := self._prepare(message):
                    works.append(work)
            except Exception as error:  # one request's trouble must not end the others'
                answers.append(self._failed(message, error))
        begun, extra_rows = self._clock(), sum(len(work.block) for work in works)
        self._compute([work for work in works if work.fed])
        for work in works:
            try:
                if work.error:
                    raise work.error
                answers.append(self._answer(work, begun, idle, extra_rows))
            except Exception as error:
                answers.append(self._failed(work.message, error))
        return answers

    def _prepare(self, message: Extend | Proceed) -> _Work | None:
        """What is to be done; nothing where there is nothing to go on from, or no need to."""
        extend, block = self._settled(message), list[Proposal]()
        if extend is None:
            return None
        held = self._hold(extend)
        if isinstance(message, Proceed) and len(extend.tokens) == 1:
            block = self._look_up(held, extend, message)
            laws = [proposal.guess.law for proposal in block if proposal.guess.law]
            extend = extend.followed_by([proposal.guess.token for proposal in block], laws)
        if extend.start != held.length:
            raise ProtocolError(
                f"tokens for position {extend.start}, but the cache holds {held.length}"
            )
        rows = max(0, extend.start + len(extend.tokens) - extend.verify_from + 1)
        return _Work(extend, held, block, rows, self._reuse(held, extend, rows))

    def _settled(self, message: Extend | Proceed) -> Extend | None:
        """What is asked for; nothing where what came before failed, or the text is whole."""
        if isinstance(message, Extend):
            return message
        held = self._held.get(message.request)
        if held is None or held.latest is None:
            return None
        position, token, whole = held.latest
        if position >= message.limit > 0:
            return None
        return message.after(position, token, whole=whole)

    def _look_up(self, held: _Held, extend: Extend, message: Proceed) -> list[Proposal]:
        """The guesses that are worth their prices; their want of it must not end a request."""
        if not (held.drafter and message.prices):
            return []
        try:
            chain = [*held.tokens[: held.length], *extend.tokens]
            room = min(message.limit - len(chain), len(message.prices))
            found = held.drafter.look_up(chain, room, least=min(message.prices))
        except Exception:
            _log.exception("look-ups are given up", extra={"request": message.request})
            held.drafter = None
            return []
        chances = [proposal.guess.confidence for proposal in found]
        return found[: worth_their_prices(chances, message.prices)]

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

    def _answer(
        self, work: _Work, begun: float, idle: float, extra_rows: int
    ) -> Verdict | Progress:
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
        if held.drafter:
            held.drafter.settle(first, [*block[:accepted], token])
            held.drafter.truncate(held.length)
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
            tuple(
                LookedUp(guess.token, guess.confidence, source, made, done)
                for guess, source, made, done in work.block
            ),
            extra_rows,
        )

    def _failed(self, message: Extend | Proceed, error: Exception) -> Failed:
        if held := self._held.get(message.request):
            held.tokens.clear()  # who knows what is in there
            held.latest = None
        return Failed("target", message.request, self._incarnation, failure("target", error))

    def _hold(self, message: Extend) -> _Held:
        if message.request not in self._held:
            if message.sampling is None:
                raise ProtocolError("tokens of a request whose beginning never came")
            slot, tokens = self._slots.take(message.tokens)
            drafter = self._sources.open(message.sampling) if self._sources else None
            self._held[message.request] = _Held(slot, Sampler(message.sampling), tokens, drafter)
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
