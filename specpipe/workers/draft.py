"""The draft's side of the protocol: guess ahead of what is committed, and follow every commit.

A draft keeps, for each request, a *chain*: the tokens it was opened with and its own guesses. It
compares every committed token with its chain. What agrees changes nothing, so drafting goes on
while the target verifies; at the first token that differs, chain and cache are cut back.

This module does not know how messages travel, nor when it will be given time: `handle` takes one
message, `step` makes one unit of progress.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from specpipe.messages import (
    MAX_TEXT,
    Block,
    Close,
    Closed,
    Commit,
    Exhausted,
    ExhaustedReason,
    Failed,
    FromWorker,
    Message,
    Open,
    Opened,
    Resync,
)
from specpipe.models.interface import SequenceModel
from specpipe.sampler import Sampler


@dataclass(slots=True)
class _Chain:
    """A request's tokens as the draft believes them.

    Attributes:
        known: length of the part that is committed.
        serial: of the last commit or open seen.
        told: the serial at which Exhausted was said last.
        synced: False from a missed commit until the next open.
        opened: whether Opened was said.
        begun, ended: when the model computed for this chain, since the last block.
    """

    slot: int
    tokens: list[int]
    known: int
    serial: int
    limit: int
    sampler: Sampler
    told: int = -1
    synced: bool = True
    opened: bool = False
    begun: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    def disagreement(self, start: int, tokens: Sequence[int]) -> int | None:
        """The first position at which committed tokens differ from the chain, or go past it.

        Every token is compared. The last one alone may agree by chance on a wrong chain.
        """
        for position, token in enumerate(tokens, start):
            if position >= len(self.tokens) or self.tokens[position] != token:
                return position
        return None


class Draft:
    """Drafts for as many requests as its model has slots.

    Args:
        model: guesses.
        incarnation: of this worker; goes into every message.
        prefill_chunk: most tokens fed by one step, so that messages are not kept waiting.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        model: SequenceModel,
        incarnation: int,
        *,
        prefill_chunk: int = 256,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._incarnation = incarnation
        self._prefill_chunk = prefill_chunk
        self._clock = clock
        self._chains: dict[int, _Chain] = {}  # whose turn is next comes first
        self._current: int | None = None
        self._fed_to = 0  # the length that the pass in progress gives the cache

    @property
    def idle(self) -> bool:
        """Whether `step` would find nothing to do."""
        return all(
            self._rests(chain) and not self._owes_word(chain) for chain in self._chains.values()
        )

    def handle(self, message: Message) -> list[FromWorker]:
        """Take one message; returns the answers."""
        match message:
            case Open():
                self._open(message)
            case Commit():
                return self._commit(message)
            case Close(request):
                self._drop(request)
                return [Closed("draft", request, self._incarnation)]
        return []

    def outdates(self, message: Message) -> bool:
        """Whether a message makes the step in progress useless.

        A commit does so where it contradicts what is being fed, and also where it goes past the
        chain's end: the token that is being guessed is known then, and one pass over both comes out
        ahead. But not while the chain is being opened: reading the tokens takes longer than the
        target needs for its next one, so the draft would begin again for ever.
        """
        if not isinstance(message, Open | Commit | Close) or message.request != self._current:
            return False
        if not isinstance(message, Commit):
            return True
        chain = self._chains[message.request]
        at = chain.disagreement(message.start, message.tokens)
        if at is None:
            return False
        guessing = self._fed_to == len(chain.tokens)
        return at < self._fed_to or (guessing and chain.opened)

    def step(self, interrupted: Callable[[], bool] | None = None) -> list[FromWorker]:
        """Feed one chunk or draft one token, for the sequence whose turn it is.

        `interrupted` is asked during the model's pass; once it says yes, the pass is dropped.
        """
        answers: list[FromWorker] = []
        for request, chain in self._chains.items():
            if self._owes_word(chain) and (reason := self._stuck(chain)):
                answers.append(Exhausted(request, self._incarnation, chain.serial, reason))
                chain.told = chain.serial
        if answers:  # the target may be waiting for this word: no pass comes before it
            return answers
        turn = next((r for r, chain in self._chains.items() if not self._rests(chain)), None)
        if turn is None:
            return []
        self._current = turn
        chain = self._chains[turn] = self._chains.pop(turn)
        try:
            answers = self._advance(turn, chain, interrupted)
        except Exception as error:  # one request's trouble must not end the others'
            self._drop(turn)
            cause = f"the draft failed: {error}".splitlines()[0]
            answers = [Failed("draft", turn, self._incarnation, cause[:MAX_TEXT])]
        self._current = None
        return answers

    def _open(self, message: Open) -> None:
        self._drop(message.request)
        self._chains[message.request] = _Chain(
            self._model.open(),
            list(message.tokens),
            message.committed_length,
            message.serial,
            message.limit,
            Sampler(message.sampling),
        )

    def _commit(self, message: Commit) -> list[FromWorker]:
        chain = self._chains.get(message.request)
        if chain is None or not chain.synced or message.last_serial <= chain.serial:
            return []
        if message.first_serial > chain.serial + 1 or message.start > chain.known:
            chain.synced = False
            return [Resync(message.request, self._incarnation)]
        at = chain.disagreement(message.start, message.tokens)
        if at is not None:
            chain.tokens[at:] = message.tokens[at - message.start :]
            self._model.truncate(chain.slot, min(at, self._model.length(chain.slot)))
        chain.serial, chain.limit = message.last_serial, message.limit
        chain.known = message.start + len(message.tokens)
        return []

    def _advance(
        self, request: int, chain: _Chain, interrupted: Callable[[], bool] | None
    ) -> list[FromWorker]:
        """One pass of the model: once its cache has all tokens but the last, it yields a guess."""
        missing = chain.tokens[self._model.length(chain.slot) :]
        rows = 1 if len(missing) <= self._prefill_chunk else 0
        chain.begun.append(self._clock())
        chunk = missing[: self._prefill_chunk]
        self._fed_to = len(chain.tokens) - len(missing) + len(chunk)
        logits = self._model.forward(chain.slot, chunk, rows, interrupted)
        if not rows or logits is None:
            chain.ended.append(self._clock())
            return []
        position = len(chain.tokens)
        guess = chain.sampler.guess(logits[-1], position, chain.tokens)
        chain.tokens.append(guess.token)
        chain.ended.append(self._clock())
        answers: list[FromWorker] = [] if chain.opened else [Opened(request, self._incarnation)]
        answers.append(
            Block(
                request,
                self._incarnation,
                chain.serial,
                position,
                (guess.token,),
                (guess.confidence,),
                tuple(chain.begun),
                tuple(chain.ended),
                (guess.law,) if guess.law else (),
            )
        )
        chain.opened, chain.begun, chain.ended = True, [], []
        return answers

    def _drop(self, request: int) -> None:
        if chain := self._chains.pop(request, None):
            self._model.close(chain.slot)

    def _stuck(self, chain: _Chain) -> ExhaustedReason | None:
        """Why a chain can't grow before the next commit; None if it can."""
        sampling, guessed = chain.sampler.sampling, len(chain.tokens) > chain.known
        # Where guesses are judged by rejection, a rest would tell the policy what the last one is,
        # and whether a guess is judged must not depend on its value.
        if guessed and not sampling.rejects and chain.tokens[-1] in sampling.stop_token_ids:
            return "stop"
        if len(chain.tokens) >= self._model.context_length:
            return "context"
        if len(chain.tokens) >= chain.limit:
            return "limit"
        return None

    def _rests(self, chain: _Chain) -> bool:
        return not chain.synced or self._stuck(chain) is not None

    def _owes_word(self, chain: _Chain) -> bool:
        """Whether the coordinator has not been told that a chain is stuck since its last commit."""
        return chain.synced and chain.told < chain.serial and self._stuck(chain) is not None
