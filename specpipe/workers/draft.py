"""The draft's side of the protocol: guess ahead of what is committed, and follow every commit.

A draft keeps, for each request, a *chain*: the tokens it was opened with and its own guesses. It
compares every committed token with its chain. What agrees changes nothing, so drafting goes on
while the target verifies; at the first token that differs, the chain is cut back.

This module does not know how messages travel, when it will be given time, nor where guesses come
from (drafting/): `handle` takes one message, `step` makes one unit of progress.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from specpipe.drafting.drafter import Drafter, Proposal, Sources
from specpipe.exhaustion import failure
from specpipe.messages import Message
from specpipe.metrics import Source
from specpipe.models.interface import Logits
from specpipe.pricing import LONGEST_RUN
from specpipe.reading import reading_part
from specpipe.worker_messages import (
    Block,
    Close,
    Closed,
    Commit,
    Computing,
    Exhausted,
    ExhaustedReason,
    Failed,
    FromWorker,
    Open,
    Opened,
    Resync,
)

_LITTLE = 16  # tokens: who lacks no more than these shares a pass with others


@dataclass(slots=True)
class _Chain:
    """A request's tokens as the draft believes them.

    Attributes:
        known: length of the part that is committed.
        serial: of the last commit or open seen.
        limit, rest_at: see Commit.
        told: the serial at which Exhausted was said last.
        synced: False from a missed commit until the next open.
        opened: whether Opened was said.
        looked: whether a look-up found nothing more since the chain changed.
        owes_word: whether the draft began anew, and has not said yet what it is about.
        begun, ended: when the model computed for this chain, since the last block.
    """

    drafter: Drafter
    tokens: list[int]
    known: int
    serial: int
    limit: int
    rest_at: int
    told: int = -1
    synced: bool = True
    opened: bool = False
    looked: bool = False
    owes_word: bool = True
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

    def may_compute(self) -> bool:
        """Whether the model may be run."""
        return self.drafter.computes and len(self.tokens) < self.rest_at

    def take(self, proposals: Sequence[Proposal]) -> None:
        """Append guesses."""
        self.tokens += [proposal.guess.token for proposal in proposals]
        self.begun += [proposal.begun for proposal in proposals]
        self.ended += [proposal.ended for proposal in proposals]
        self.looked, self.owes_word = not self.drafter.looks_up, False


class Draft:
    """Drafts for as many requests as its sources have room for.

    Args:
        sources: where guesses come from.
        incarnation: of this worker; goes into every message.
        prefill_chunk: most tokens fed by one step, so that messages are not kept waiting; fewer
            where there are others, whom these are for.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        sources: Sources,
        incarnation: int,
        *,
        prefill_chunk: int = 256,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources = sources
        self._incarnation = incarnation
        self._prefill_chunk = prefill_chunk
        self._clock = clock
        self._chains: dict[int, _Chain] = {}  # whose turn is next comes first
        self._current: list[int] = []  # whose tokens the pass in progress feeds

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where guesses come from."""
        return self._sources.names

    @property
    def idle(self) -> bool:
        """Whether `step` would find nothing to do."""
        return all(
            self._rests(chain) and not self._is_to_say_so(chain) for chain in self._chains.values()
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
        if not isinstance(message, Open | Commit | Close) or message.request not in self._current:
            return False
        if not isinstance(message, Commit):
            return True
        chain = self._chains[message.request]
        at = chain.disagreement(message.start, message.tokens)
        if at is None:
            return False
        guessing = chain.drafter.feeds_to == len(chain.tokens)
        return at < chain.drafter.feeds_to or (guessing and chain.opened)

    def step(self, interrupted: Callable[[], bool] | None = None) -> list[FromWorker]:
        """Look up for one sequence, or run the model for all that it can be run for at once.

        `interrupted` is asked during the model's pass; once it says yes, the pass is dropped.
        """
        answers: list[FromWorker] = []
        for request, chain in self._chains.items():
            answers += self._say_if_stuck(request, chain)
        if answers:  # the target may be waiting for this word: no pass comes before it
            return answers
        active = [request for request, chain in self._chains.items() if not self._rests(chain)]
        if not active:
            return []
        # Look-ups first: they take microseconds, and whoever needs a pass shares the next one.
        turn = next((r for r in active if not self._chains[r].looked), None)
        if turn is not None:
            self._chains[turn] = self._chains.pop(turn)
            return self._guarded(turn, self._look_up)
        batch = self._batch(active)
        for request in batch:
            self._chains[request] = self._chains.pop(request)
        answers = self._advance(batch, interrupted)
        self._current = []
        return answers

    def _open(self, message: Open) -> None:
        self._drop(message.request)
        guessed = range(message.committed_length, len(message.tokens))
        drafter = self._sources.open(message.sampling, message.tokens, guessed)
        self._chains[message.request] = _Chain(
            drafter,
            list(message.tokens),
            message.committed_length,
            message.serial,
            message.limit,
            message.rest_at,
            looked=not drafter.looks_up,
        )

    def _commit(self, message: Commit) -> list[FromWorker]:
        chain = self._chains.get(message.request)
        if chain is None or not chain.synced or message.last_serial <= chain.serial:
            return []
        if message.first_serial > chain.serial + 1 or message.start > chain.known:
            chain.synced = False
            return [Resync(message.request, self._incarnation)]
        at = chain.disagreement(message.start, message.tokens)
        agreed = message.tokens if at is None else message.tokens[: at - message.start + 1]
        chain.drafter.settle(message.start, agreed)
        if at is not None:
            chain.tokens[at:] = message.tokens[at - message.start :]
            chain.drafter.truncate(at)
            chain.owes_word = True
        chain.serial = message.last_serial
        chain.limit, chain.rest_at = message.limit, message.rest_at
        chain.known = message.start + len(message.tokens)
        chain.looked = not chain.drafter.looks_up
        return []

    def _guarded(
        self, request: int, work: Callable[[int, _Chain], list[FromWorker]]
    ) -> list[FromWorker]:
        """Work for a request, whose trouble must not end the others'."""
        try:
            return work(request, self._chains[request])
        except Exception as error:
            return self._failed(request, error)

    def _failed(self, request: int, error: Exception) -> list[FromWorker]:
        self._chains.pop(request).drafter.close()
        return [Failed("draft", request, self._incarnation, failure("draft", error))]

    def _batch(self, active: Sequence[int]) -> list[int]:
        """Who takes part in the model's next pass, the first in any case: who lacks much, alone."""
        chains = self._chains
        lacks = {r: chains[r].drafter.lacks(chains[r].tokens) for r in active}
        if lacks[active[0]] > _LITTLE:
            return [active[0]]
        return [request for request in active if lacks[request] <= _LITTLE]

    def _look_up(self, request: int, chain: _Chain) -> list[FromWorker]:
        """Guess what takes no pass of the model; then, if nothing more does, say what comes."""
        room = self._room(chain)
        found = chain.drafter.look_up(chain.tokens, room, may_compute=chain.may_compute())
        answers = self._opened(request, chain) if found and not chain.drafter.computes else []
        if found:
            answers.append(self._block(request, chain, found))
        # A run that ended early, and not with the text, ended for want of anything to say.
        ends = bool(found) and found[-1].guess.token in chain.drafter.sampling.stop_token_ids
        chain.looked = len(found) < min(room, LONGEST_RUN) and not ends
        if chain.looked and chain.owes_word and chain.may_compute():
            chain.owes_word = False
            answers.append(Computing(request, self._incarnation, chain.serial))
        return answers + self._say_if_stuck(request, chain)

    def _advance(
        self, requests: list[int], interrupted: Callable[[], bool] | None
    ) -> list[FromWorker]:
        """One pass of the model: once its cache has all tokens of a chain, it yields a guess.

        Where it fails, one for each, so that only the culprit fails.
        """
        self._current = requests
        begun, answers = self._clock(), list[FromWorker]()
        chains = [self._chains[request] for request in requests]
        chunk = reading_part(self._prefill_chunk, beside_others=len(self._chains) > 1)
        try:
            feeds = [chain.drafter.feed(chain.tokens, chunk) for chain in chains]
            found = self._sources.forward(feeds, interrupted)
        except Exception as error:
            if len(requests) == 1:
                return self._failed(requests[0], error)
            for request in requests:
                answers += self._advance([request], interrupted)
            return answers
        for i, (request, chain) in enumerate(zip(requests, chains, strict=True)):
            if found is None or not feeds[i].rows:
                chain.begun.append(begun)
                chain.ended.append(self._clock())
            else:
                take = partial(self._take_guess, logits=found[i], begun=begun)
                answers += self._guarded(request, take)
        return answers

    def _take_guess(
        self, request: int, chain: _Chain, logits: Logits, begun: float
    ) -> list[FromWorker]:
        made = chain.drafter.guess(chain.tokens, logits, begun)
        return [*self._opened(request, chain), self._block(request, chain, [made])]

    def _block(self, request: int, chain: _Chain, proposals: Sequence[Proposal]) -> Block:
        """Append guesses to the chain, and tell of them."""
        start = len(chain.tokens)
        chain.take(proposals)
        guesses = [proposal.guess for proposal in proposals]
        block = Block(
            request,
            self._incarnation,
            chain.serial,
            start,
            tuple(guess.token for guess in guesses),
            tuple(guess.confidence for guess in guesses),
            tuple(proposal.source for proposal in proposals),
            tuple(chain.begun),
            tuple(chain.ended),
            tuple(guess.law for guess in guesses if guess.law),
        )
        chain.begun, chain.ended = [], []
        return block

    def _say_if_stuck(self, request: int, chain: _Chain) -> list[FromWorker]:
        """The word that a chain can't grow, if the coordinator has not been told so."""
        if not self._is_to_say_so(chain) or not (reason := self._stuck(chain)):
            return []
        chain.told, chain.owes_word = chain.serial, False
        exhausted = Exhausted(request, self._incarnation, chain.serial, reason)
        return [*([] if chain.drafter.computes else self._opened(request, chain)), exhausted]

    def _opened(self, request: int, chain: _Chain) -> list[FromWorker]:
        """The word that the draft has read the request, unless it was said."""
        if chain.opened:
            return []
        chain.opened = True
        return [Opened(request, self._incarnation)]

    def _drop(self, request: int) -> None:
        if chain := self._chains.pop(request, None):
            chain.drafter.close(chain.tokens, chain.known)

    def _room(self, chain: _Chain) -> int:
        return min(chain.limit, self._sources.context_length) - len(chain.tokens)

    def _stuck(self, chain: _Chain) -> ExhaustedReason | None:
        """Why a chain can't grow before the next commit; None if it can."""
        sampling, guessed = chain.drafter.sampling, len(chain.tokens) > chain.known
        # Where guesses are judged by rejection, a rest would tell the policy what the last one is,
        # and whether a guess is judged must not depend on its value.
        if guessed and not sampling.rejects and chain.tokens[-1] in sampling.stop_token_ids:
            return "stop"
        if len(chain.tokens) >= self._sources.context_length:
            return "context"
        if len(chain.tokens) >= chain.limit:
            return "limit"
        if chain.looked and not chain.may_compute():
            return "limit" if chain.drafter.computes else "nothing"
        return None

    def _rests(self, chain: _Chain) -> bool:
        return not chain.synced or self._stuck(chain) is not None

    def _is_to_say_so(self, chain: _Chain) -> bool:
        """Whether the coordinator has not been told that a chain is stuck since its last commit."""
        return chain.synced and chain.told < chain.serial and self._stuck(chain) is not None
