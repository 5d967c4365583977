"""One request as the coordinator sees it: what is final, what is guessed, where the workers stand.

The chain is committed + in-flight + waiting tokens, in this order and without gaps. Only two
operations change it: a block from the draft appends to it, a commit moves its front.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from specpipe.metrics import RequestMetrics
from specpipe.pace import DraftState, Pace
from specpipe.policy import Judged
from specpipe.sampling import Sampling
from specpipe.step import Drafted, Step, agreeing, fates, laws_of
from specpipe.stopping import StopRule
from specpipe.worker_messages import Block, Commit, Extend, Open, Proceed, Role, Verdict
from specpipe.worker_state import Pass

MOST_LOSSES = 4
"""How often in a row a worker may be lost over a request before it is tried no more with it."""


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
        steps: what the target was told and has not answered: one, and perhaps the next.
        waiting: drafted tokens not yet sent to the target.
        serial: of the latest commit or open; `fence`: blocks that saw less are stale.
        target_length: tokens in the target's cache, as far as its answers tell.
        exhausted_at: the serial at which the draft said that it can't go on.
        timer: id of the running timer, while waiting for the draft.
        silent: a timer fired, and the draft has said nothing since: it is not waited for.
        losses: how often each worker was lost while it worked for this request, since it last got
            anywhere with it.
        handover: whether tokens were waiting when the last verdict came, so that a block followed
            it at once.
        unsent: how many of the last committed tokens the draft has not been told of.
        limits: how long the draft was last told that its chain may get, and from which length on
            its model rests; `pause_at`: the policy's wish about the latter.
        word_due: the serial at which the draft had to begin anew, if it has not said yet what it
            is about; a draft that can guess at no cost does so in a fraction of a millisecond.
        awaited: whether the target was kept waiting for that word since the last verdict.
        prices: what the target was told of guesses of its own; while it makes some, the draft adds
            none, and is told of commits once it may again.
        told: the serial of the latest commit or open that the draft was told of.
        run: how many guesses were taken since the draft last began anew.
        decided: when the latest commit was.
    """

    request: int
    sampling: Sampling
    stop: StopRule
    prompt_length: int
    max_tokens: int
    committed: list[int]
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    steps: list[Step] = field(default_factory=list)
    waiting: list[Drafted] = field(default_factory=list)
    serial: int = 0
    fence: int = 0
    target_length: int = 0
    draft: DraftState = DraftState.ABSENT
    exhausted_at: int = -1
    timer: int | None = None
    silent: bool = False
    losses: Counter[Role] = field(default_factory=Counter)
    handover: bool = False
    unsent: int = 0
    limits: tuple[int, int] = (0, 0)
    word_due: int | None = None
    awaited: bool = False
    pause_at: int | None = None
    prices: tuple[float, ...] = ()
    told: int = 0
    pace: Pace = field(default_factory=Pace)
    run: int = 0
    decided: float | None = None
    _commit_serials: list[int] = field(default_factory=list)

    @property
    def extend(self) -> Extend | None:
        """The command that the target is at."""
        message = self.steps[0].message if self.steps else None
        assert not isinstance(message, Proceed), "what it comes to is known"
        return message

    @property
    def in_flight(self) -> list[Drafted]:
        """The block that the target is judging."""
        return self.steps[0].block if self.steps else []

    @property
    def guesses(self) -> list[Drafted]:
        """The chain behind what is committed."""
        return [guess for step in self.steps for guess in step.block] + self.waiting

    @property
    def chain_length(self) -> int:
        """Tokens in the chain."""
        sent = sum(len(step.block) for step in self.steps)
        return len(self.committed) + sent + len(self.waiting)

    def chain(self) -> list[int]:
        """The whole chain's tokens."""
        return self.committed + [guess.token for guess in self.guesses]

    def left(self, context_length: int) -> int:
        """Tokens that may still be committed."""
        written = len(self.committed) - self.prompt_length
        return min(self.max_tokens - written, context_length - len(self.committed))

    def longest_chain(self, context_length: int) -> int:
        """How long the chain may ever get.

        The last token of a request needs no guess: the target always adds one of its own.
        """
        return min(self.prompt_length + self.max_tokens, context_length) - 1

    def chain_limits(self, context_length: int, lookahead: int) -> tuple[int, int]:
        """How long the draft's chain may get, and from which length on its model rests.

        A draft that is being opened is not paused, since only its first guess says that it can be
        used.
        """
        limit = min(self.longest_chain(context_length), len(self.committed) + lookahead)
        if self.draft is DraftState.OPENING:
            return limit, limit
        if self.prices:
            limit = min(limit, self.chain_length)
        return limit, limit if self.pause_at is None else min(limit, self.pause_at)

    @property
    def next_start(self) -> int:
        """How many of the committed tokens the target knows once it has answered."""
        coming = len(self.extend.tokens) if self.extend else 0
        return min(self.target_length + coming, len(self.committed) - 1)

    @property
    def behind(self) -> int:
        """How many committed tokens it has to read then, besides the last one."""
        return len(self.committed) - 1 - self.next_start

    def most_guesses(self, context_length: int) -> int:
        """How many guesses the target's next step may have, behind those that it is judging."""
        return self.left(context_length) - 1 - len(self.in_flight)

    def takes_step(self, context_length: int) -> bool:
        """Whether the target can be told what to do next, and there will be something to do."""
        if len(self.steps) > 1 or not (self.extend and self.extend.judges):
            return len(self.steps) < 2
        return self.most_guesses(context_length) > 0

    @property
    def reading(self) -> bool:
        """Whether the draft is reading the tokens, and may be waited for."""
        opening = self.draft is DraftState.OPENING and self.exhausted_at < self.serial
        return opening and not self.silent

    @property
    def drafting(self) -> bool:
        """Whether the draft is at work, so that another token will come without our doing."""
        may = self.draft is DraftState.OPEN and not self.prices
        return may and self.exhausted_at < self.serial

    @property
    def hushed(self) -> bool:
        """Whether the draft need not be told of commits: it can add nothing, and is not to."""
        quiet = self.draft is DraftState.OPEN and bool(self.prices)
        return quiet and self.limits[0] <= len(self.committed) - self.unsent

    def pause(self, ahead: int | None) -> None:
        """Let the draft's model rest once it has added so many tokens; None: not by our wish."""
        self.pause_at = None if ahead is None else self.chain_length + ahead

    def hear_word(self, serial: int) -> None:
        """The draft, which had seen this serial, said what it is about."""
        self.silent = False
        if self.word_due is not None and serial >= self.word_due:
            self.word_due = None

    def take_block(self, block: Block) -> BlockFate:
        """Append the part of a block that is new, after comparing the part that is not."""
        if block.serial < self.fence:
            return BlockFate.STALE
        end = self.chain_length
        if block.start > end:
            return BlockFate.ERROR
        earlier = len(block.begun) - len(block.tokens)  # stretches that made no token
        guesses = self.guesses
        for i, token in enumerate(block.tokens):
            position = block.start + i
            if position < len(self.committed):
                if token != self.committed[position]:
                    self.fence = max(self.fence, self._serial_of(position))
                    return BlockFate.STALE
            elif position < end:
                if token != guesses[position - len(self.committed)].token:
                    return BlockFate.ERROR
            else:
                begun, ended = block.begun[earlier + i], block.ended[earlier + i]
                law = block.laws[i] if block.laws else None
                confidence = block.confidences[i]
                source = block.sources[i]
                self.waiting.append(Drafted(token, confidence, source, begun, ended, self.run, law))
                self.run += 1
                self.metrics.of_source(source).drafted += 1
        return BlockFate.TAKEN

    def judged_block(self, verdict: Verdict) -> list[Drafted]:
        """The guesses that a verdict is about: those that were sent, or the target's own."""
        if not verdict.block:
            return self.in_flight
        for made in verdict.block:
            self.metrics.drafting.add(made.begun, made.ended)
            self.metrics.of_source(made.source).drafted += 1
        return [Drafted.of(made, offset) for offset, made in enumerate(verdict.block)]

    def commit(
        self, tokens: Sequence[int], now: float, own: Sequence[Drafted] = ()
    ) -> tuple[list[Judged], bool]:
        """Make tokens final, drop what they contradict.

        `own`: guesses of the target's own that it judged.

        Returns:
            What became of the guesses, and whether some were contradicted.
        """
        start, resting = len(self.committed), not self.drafting
        self.serial += 1
        self.decided, self.awaited = now, False
        sent, pending = len(self.in_flight), self.guesses
        self.committed += tokens
        self._commit_serials += [self.serial] * len(tokens)
        self.pause_at = None
        self.losses["target"] = 0
        self.unsent += len(tokens)
        same = agreeing(pending, tokens)
        contradicted = same < min(len(tokens), len(pending))
        if contradicted:
            self.fence = self.serial
        if same < len(tokens):
            self.run, self.word_due = 0, self.serial
            self.pace.restart(now, resting=resting, fresh=True)
        elif resting:
            self.pace.restart(now, resting=True, fresh=False)
        self._end_step([] if contradicted else pending[len(tokens) :], whole=len(tokens) > sent)
        # Under the rejection rule, being equal to a bonus token is not the same as being accepted.
        telling = sent if self.sampling.rejects else len(pending)
        judged = fates(self.request, start, pending, tokens, telling)
        judged += fates(self.request, start, own, tokens, len(own))
        contradicted |= agreeing(own, tokens) < min(len(tokens), len(own))
        self.metrics.rollbacks += contradicted
        return judged, contradicted

    def unjudged(self) -> list[Judged]:
        """The guesses of a request that ends, of which nothing will be known."""
        start = len(self.committed)
        return [guess.judged(self.request, start + i, None) for i, guess in enumerate(self.guesses)]

    def read(self, length: int) -> None:
        """The target has read so many tokens, and judged none."""
        self.target_length = length
        self._end_step(self.guesses, whole=True)

    def news(self, limits: tuple[int, int]) -> Commit | None:
        """What the draft that follows has to be told: new tokens, other limits, or nothing."""
        count, self.unsent = self.unsent, 0
        if not count:
            if limits == self.limits:
                return None
            self.serial += 1
        self.limits = limits
        start, first = len(self.committed) - count, self.told + 1
        self.told = self.serial
        tokens = tuple(self.committed[start:])
        return Commit(self.request, first, self.serial, start, tokens, *limits)

    def open(self, limits: tuple[int, int]) -> Open:
        """Hand the whole chain to the draft; all blocks made before are stale from here on."""
        self.draft, self.exhausted_at = DraftState.OPENING, -1
        self.serial += 1
        self.fence = self.told = self.serial
        self.unsent, self.limits, self.run = 0, limits, 0
        self.pace.known, self.word_due = False, self.serial
        tokens, committed = tuple(self.chain()), len(self.committed)
        return Open(self.request, self.serial, tokens, committed, *limits, self.sampling)

    def verify(
        self, extend_id: int, count: int, made: Pass, *, rests: bool, more: bool, limit: int
    ) -> Extend | Proceed:
        """Send the first `count` waiting tokens, after whatever the target's cache still lacks.

        `made`: the pass that this is for. `rests`: no model of a draft works meanwhile. `more`:
        another sequence's follows, for the same pass. `limit`: see Proceed.
        """
        queued = self.extend is not None and self.extend.judges
        if queued and (self.prices or self.steps[0].open_ended):
            count = 0
        block, self.waiting = self.waiting[:count], self.waiting[count:]
        self.timer = None
        # A pass over guesses of the model is none of a target alone, though the model be done.
        alone = rests and not any(guess.source == "model" for guess in block)
        tokens = self.committed[self.next_start :]
        message: Extend | Proceed
        if queued:
            guesses, laws = tuple(guess.token for guess in block), laws_of(block[1:])
            message = Proceed(self.request, extend_id, guesses, laws, more, limit, self.prices)
        else:
            message = self._extend(extend_id, tokens, block, more=more)
        self._send(Step(message, block, made, alone, queued and bool(self.prices)))
        return message

    def prefill(self, extend_id: int, count: int, made: Pass, *, more: bool) -> Extend:
        """Feed the next `count` committed tokens; nothing is judged. `made`, `more`: see verify."""
        message = self._extend(extend_id, self.committed[self.next_start :][:count], [], more=more)
        self._send(Step(message, [], made, alone=False))
        return message

    def lose_target(self, *, held: bool) -> None:
        """The target's cache is gone; what it was judging waits again.

        `held`: whether this request had a slot there.
        """
        self.losses["target"] += held
        self.waiting, self.steps = self.guesses, []
        self.target_length = 0
        self.timer, self.handover = None, False

    def lose_draft(self, *, held: bool) -> None:
        """The draft's state is gone; its guesses stay. `held`: as in lose_target."""
        self.losses["draft"] += held
        if self.losses["draft"] > MOST_LOSSES:
            self.draft = DraftState.FAILED
        if self.draft is not DraftState.FAILED:
            self.draft = DraftState.ABSENT
        self.exhausted_at = -1
        self.pace.known = False

    def _extend(
        self, extend_id: int, tokens: Sequence[int], block: Sequence[Drafted], *, more: bool
    ) -> Extend:
        start, known = self.next_start, len(self.committed)
        fed, laws = (*tokens, *(guess.token for guess in block)), laws_of(block)
        sampling = None if start else self.sampling
        return Extend(self.request, extend_id, start, fed, known, sampling, laws, more)

    def _send(self, step: Step) -> None:
        self.steps.append(step)
        if len(self.steps) == 1:
            self._begin_step()

    def _end_step(self, guesses: list[Drafted], *, whole: bool) -> None:
        """The target has answered; if it knew what to do next, it is doing it.

        `guesses`: what is left of them; `whole`: see Proceed.
        """
        del self.steps[0]
        self.waiting = guesses
        if self.steps:
            last = len(self.committed) - 1
            self.steps[0] = self.steps[0].after(last, self.committed[last], guesses, whole=whole)
            self.waiting = guesses[len(self.in_flight) :]
            self._begin_step()

    def _begin_step(self) -> None:
        """What the first step comes to is known."""
        assert self.extend
        self.steps[0].made.rows += len(self.extend.tokens)

    def _serial_of(self, position: int) -> int:
        """The serial that committed a position; 0 for the prompt."""
        offset = position - self.prompt_length
        return self._commit_serials[offset] if offset >= 0 else 0
