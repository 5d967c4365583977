"""The draft and the target of a virtual World: the real objects, and how long things take them."""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from specpipe.drafting.drafter import Sources
from specpipe.messages import Message
from specpipe.metrics import Source
from specpipe.models.slots import Slots
from specpipe.worker_messages import (
    Block,
    Commit,
    Extend,
    FromWorker,
    Proceed,
    Ready,
    Role,
    Verdict,
)
from specpipe.workers.draft import Draft
from specpipe.workers.target import Target
from tests import promises
from tests.toys import ToyModel

if TYPE_CHECKING:
    from tests.virtual import World

FOREVER = 1e17


class Actor:
    """One incarnation of a worker: what arrives for it, and how long it takes."""

    role: Role

    def __init__(self, world: "World", incarnation: int, model: ToyModel) -> None:
        self.world, self.incarnation, self.model = world, incarnation, model
        self.alive, self.busy, self.stalled_until = True, False, 0.0
        self.box: deque[Any] = deque()
        self.passes = 0
        loading = world.rng.choice((2, 2, 2, 30)) * world.rng.random()
        world.at(world.now + loading, world.send_up, self, self._ready())

    def _ready(self) -> Ready:
        model = self.model
        shape = (model.num_slots, model.context_length, model.vocab_size)
        return Ready(self.role, self.incarnation, *shape, "cpu:0", (0,), self._source_names())

    def _source_names(self) -> tuple[Source, ...]:
        return ()

    @property
    def slots(self) -> Slots | None:
        raise NotImplementedError

    @property
    def hangs(self) -> bool:
        return self.stalled_until >= FOREVER

    def stall(self, until: float) -> None:
        self.stalled_until = max(self.stalled_until, until)

    def begin(self, seconds: float, then: Callable[..., None], *args: Any) -> None:
        """Be busy for a while; what is begun later, or a death, makes this void."""
        self.busy = True
        self.passes += 1
        until = max(self.world.now, min(self.stalled_until, FOREVER)) + seconds
        self.world.at(until, self._end, self.passes, then, args)

    def _end(self, number: int, then: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.alive and self.busy and number == self.passes:
            self.busy = False
            then(*args)
            self.wake()

    def arrive(self, message: Message) -> None:
        if self.alive:
            self.box.append(message)
            self.wake()

    def wake(self) -> None:
        raise NotImplementedError


class DraftActor(Actor):
    """Runs a Draft as workers/loop.py does; a pass that a message arrives in may end at once."""

    role: Role = "draft"

    def __init__(self, world: "World", incarnation: int, model: ToyModel) -> None:
        super().__init__(world, incarnation, model)
        self.draft = Draft(
            self._sources(), incarnation, prefill_chunk=world.draft_chunk, clock=lambda: world.now
        )

    @property
    def slots(self) -> Slots | None:
        return self.draft._sources.slots

    def _source_names(self) -> tuple[Source, ...]:
        return self._sources().names

    def _sources(self) -> Sources:
        kind, model = self.world.drafter, self.model
        return Sources(
            None if kind == "ngram" else model,
            lookup=kind != "model",
            remember=0 if kind == "model" else self.world.remember,
            context_length=model.context_length,
            clock=lambda: self.world.now,
        )

    def arrive(self, message: Message) -> None:
        if self.alive:
            self.box.append(message)
            stalled = self.stalled_until > self.world.now
            if self.busy and not stalled and self.world.rng.random() < self.world.interrupt_chance:
                self._end(self.passes, self._step, ())
            else:
                self.wake()

    def wake(self) -> None:
        if self.busy or not self.alive:
            return
        if self.stalled_until > self.world.now:
            self.begin(0.0, lambda: None)
            return
        while self.box:
            self._send(self.draft.handle(self._coalesced(self.box.popleft())))
        if not self.draft.idle:
            rng = self.world.rng
            self.model.failing = rng.random() < self.world.draft_failure_chance
            self.begin(rng.uniform(0.5, 1.5), self._step)

    def _step(self) -> None:
        self._send(self.draft.step(self._interrupted))

    def _interrupted(self) -> bool:
        """Asked in time, or not."""
        outdated = any(self.draft.outdates(message) for message in self.box)
        dropped = outdated and self.world.rng.random() < 0.8
        self.world.seen["dropped"] += dropped
        return dropped

    def _send(self, messages: list[FromWorker]) -> None:
        for message in messages:
            if isinstance(message, Block):
                promises.check_guess(self, message)
            self.world.send_up(self, message)

    def _coalesced(self, message: Message) -> Message:
        """Neighbouring commits as one, now and then: the protocol allows it."""
        while isinstance(message, Commit) and self.box and self.world.rng.random() < 0.5:
            other = self.box[0]
            adjoins = (
                isinstance(other, Commit)
                and other.request == message.request
                and other.first_serial == message.last_serial + 1
            )
            if not adjoins:
                break
            self.box.popleft()
            tokens = message.tokens + other.tokens
            message = replace(other, first_serial=message.first_serial, start=message.start)
            message = replace(message, tokens=tokens)
        return message


class TargetActor(Actor):
    """Runs a Target: one message after the other, but all of a pass at once."""

    role: Role = "target"

    def __init__(self, world: "World", incarnation: int, model: ToyModel) -> None:
        super().__init__(world, incarnation, model)
        sources = self._sources()
        self.target = Target(model, incarnation, sources=sources, clock=lambda: world.now)

    def _source_names(self) -> tuple[Source, ...]:
        sources = self._sources()
        return sources.names if sources else ()

    def _sources(self) -> Sources | None:
        world = self.world
        if not world.target_looks_up:
            return None
        return Sources(
            None,
            lookup=True,
            remember=world.remember,
            context_length=self.model.context_length,
            clock=lambda: world.now,
        )

    @property
    def slots(self) -> Slots | None:
        return self.target._slots

    def wake(self) -> None:
        if self.alive and not self.busy and self.box:
            self.begin(self.world.verify_s * self.world.rng.uniform(0.5, 1.5), self._handle)

    def _handle(self) -> None:
        more = True
        self.box = deque(self.target.in_order(self.box))
        while more and self.box:
            message = self.box.popleft()
            more = isinstance(message, Extend | Proceed) and message.more
            if more:  # a pass of several fails now and then: then each is made alone
                self.model.fails_shared = self.world.rng.random() < self.world.pass_failure_chance
            known = self.world.coordinator.sequences
            if isinstance(message, Extend | Proceed) and message.request in known:
                promises.check_laws(self, message)
            for answer in self.target.handle(message):
                if isinstance(answer, Verdict):
                    promises.check_looked_up(self, answer)
                self.world.send_up(self, answer)
