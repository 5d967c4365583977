"""The real coordinator, draft and target on a virtual clock, with seeded faults.

`World(seed).run()` plays one schedule of delays, doubled and lost messages, stalls, deaths and
restarts, and raises AssertionError at the first thing that the protocol promises and does not keep.
After each event promises.py looks into all three parts: most protocol bugs only waste drafts, and
no output would ever show them.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

from specpipe.codec import decode, encode
from specpipe.coordinator import Coordinator
from specpipe.dispatch import Unlearned, make_policy
from specpipe.events import Event, Send, StartTimer, TimerFired
from specpipe.messages import Abort, Finish, Gone, Lost, Message, Submit, Tokens, Vocabulary
from specpipe.pace import DraftState
from specpipe.policy import Decision, Policy, Situation
from specpipe.sampling import Sampling
from specpipe.worker_messages import Commit, Exhausted, FromWorker, Resync, Role
from tests import promises
from tests.actors import FOREVER, Actor, DraftActor, TargetActor
from tests.toys import EOS, TOKEN_BYTES, VOCABULARY, DraftLaw, TargetLaw, ToyModel, decode_plain

MOST_EVENTS = 60_000
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"top_k": 2},
    {"repetition_penalty": 2.5},
    {"frequency_penalty": 1.5, "presence_penalty": -1.0, "min_p": 0.1},
    {"bias_ids": (1, 3), "bias_values": (4.0, -3.0), "top_p": 0.7},
)
"""What requests ask of their sampling, besides the temperature."""


class RandomPolicy(Unlearned):
    """Does anything that is legal, and pauses the draft now and then."""

    def __init__(
        self, rng: random.Random, wait_chance: float, pause_chance: float, ahead: random.Random
    ) -> None:
        self._rng, self._wait_chance, self._pause_chance = rng, wait_chance, pause_chance
        self._ahead, self._ahead_chance = ahead, ahead.choice((0.0, 0.5, 1.0))

    def runs_ahead(self, sequences: int) -> bool:
        return self._ahead.random() < self._ahead_chance

    def spare(self, rows: int, age: float) -> float:
        return self._ahead.choice((0.0, 0.1, 1.0, 5.0))

    def prices(self, sequences: int, draft: DraftState) -> tuple[float, ...]:
        if draft.follows and self._ahead.random() < 0.5:
            return ()
        return (self._ahead.choice((0.0, 0.2, 0.6)),) * self._ahead.choice((0, 1, 4, 16))

    def decide(self, situation: Situation) -> Decision:
        rng = self._rng
        most = min(len(situation.confidences), situation.largest_block)
        assert most >= 0
        assert not (situation.may_wait and most == situation.largest_block), "full, yet may wait"
        ahead = rng.choice((0, 1, 2, 5)) if rng.random() < self._pause_chance else None
        if situation.may_wait and rng.random() < self._wait_chance:
            return Decision(None, ahead)
        return Decision(rng.choice((most, rng.randint(0, most))), ahead)


class World:
    """One schedule. A draft step takes about 1 s; every choice follows from the seed.

    Attributes:
        clean: no faults at all: then no timer fires and no draft is resynchronised.
        loss_chance: of a commit; no transport of ours loses any, but the protocol survives it.
        policy: the kind of rule that decides.
        target_looks_up: the target can make guesses itself; `undrafted`: and there is no draft.
        seen: counts of what happened, to show that the schedules reach it.
    """

    def __init__(self, seed: int) -> None:
        rng, self._seed = random.Random(seed), seed
        self.rng = rng
        self.now, self._number = 0.0, 0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.seen: Counter[str] = Counter()

        self.clean = rng.random() < 0.2
        self.verify_s = rng.choice((0.3, 1, 2, 3, 5, 10, 20))
        self.delay = rng.choice((0.05, 0.5, 3))
        self.slots = rng.choice((1, 2, 3))
        self.draft_chunk = rng.choice((2, 5, 100))
        self.interrupt_chance = rng.choice((0, 0.5, 1))
        self.context = {"target": rng.choice((12, 24, 100)), "draft": rng.choice((6, 10, 20, 200))}
        self.duplicate_chance = 0 if self.clean else rng.choice((0, 0, 0.1, 0.3))
        self.loss_chance = 0 if self.clean or rng.random() < 0.8 else 0.1
        self.draft_failure_chance = 0 if self.clean or rng.random() < 0.8 else 0.05
        own = self._own = random.Random(f"{seed}: sources")
        self.drafter = own.choice(("model", "hybrid", "ngram"))
        self.pass_failure_chance = 0 if self.clean else own.choice((0, 0, 0.1))
        self.remember = own.choice((0, 40))
        memory, eos_percent = rng.choice((None, None, 2)), rng.choice((0, 3, 8))
        self.law = TargetLaw(seed, memory, eos_percent)
        self._agree, self._moody = rng.choice((0, 40, 70, 90, 100)), rng.random() < 0.3

        count = rng.choice((1, 1, 1, 2, 3, 4))
        timeout = 18 * min(count, self.slots) + 12 * self.delay + 5
        self.lookahead = rng.choice((1, 2, 5, 12, 40))
        self.taking_turns = random.Random(f"{seed}: turns").random() < 0.2
        self.coordinator = Coordinator(
            self._choose_policy(),
            lookahead=self.lookahead,
            prefill_chunk=rng.choice((1, 2, 4, 100)),
            wait_timeout_s=timeout,
            taking_turns=self.taking_turns,
        )
        self.in_transit: Counter[tuple[Role, int]] = Counter()
        self._last_arrival: dict[tuple[Role, int, str], float] = {}
        self.dead: set[Role] = set()
        self.draft_laws: dict[int, DraftLaw] = {}
        self.submitted: dict[int, Submit] = {}
        self.plain: dict[int, tuple[list[int], str]] = {}
        self.user: dict[int, list[int]] = {}
        self.finished: dict[int, Finish] = {}
        self.aborted: set[int] = set()

        self.coordinator.handle(Vocabulary(TOKEN_BYTES), 0.0)
        tokens = sum(self._plan_request(request) for request in range(count))
        each = 3 * self.verify_s * (count + 1) + 4 * self.delay + timeout
        self._bound = (tokens + count) * each + 300
        looks_up = random.Random(f"{seed}: looks up").random()
        self.target_looks_up, self.undrafted = looks_up < 0.3, looks_up < 0.15
        self.target = self._start_target(1)
        self.draft = self._start_draft(1)
        if self.undrafted:
            self.draft.alive = False
            self.dead.add("draft")
        if not self.clean:
            self._plan_faults()

    def _choose_policy(self) -> Policy:
        """Any of them; drawn draft lengths may be more than lookahead or context allow."""
        rng = self.rng
        name = rng.choice(("random", "random", "take_all", "serial", "pearl", "elastic"))
        self.policy = name
        if name == "random":
            pauses = rng.choice((0.0, 0.0, 0.3, 1.0))
            ahead = random.Random(f"{self._seed}: ahead")
            return RandomPolicy(rng, rng.choice((0.2, 0.6, 0.9)), pauses, ahead)
        if name in {"serial", "pearl"}:
            return make_policy(f"{name}:{rng.choice((1, 2, 4, 12))}")
        return make_policy(name)

    # -- the schedule

    def at(self, moment: float, then: Callable[..., None], *args: Any) -> None:
        self._number += 1
        heapq.heappush(self._events, (moment, self._number, then, args))

    def _plan_request(self, request: int) -> int:
        rng = self.rng
        longest = min(9, self.context["target"] - 1)
        prompt = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, longest)))
        if request and self._own.random() < 0.5:
            prompt = self._next_turn(prompt)
        stop = () if rng.random() < 0.3 else (EOS,)
        params = Sampling(
            rng.choice((0.0, 0.0, 0.8)),
            rng.randrange(2**63),
            request,
            stop,
            prompt_length=len(prompt),
            acceptance=rng.choice(("coupled", "coupled", "rejection")),
            **rng.choice(OPTIONS),
        )
        texts = rng.choice(((), (), ("aa",), ("aéa", "bb")))
        submit = Submit(request, prompt, rng.choice((1, 2, 3, 8, 15, 30)), params, texts)
        self.submitted[request], self.user[request] = submit, []
        self.plain[request] = decode_plain(
            self.law,
            prompt,
            params,
            submit.max_tokens,
            context_length=self.context["target"],
            stop=texts,
        )
        moment = rng.uniform(0, 20) if request else rng.choice((0.0, 5.0))
        self.at(moment, self._tell, submit)
        if not self.clean and rng.random() < 0.12:
            self.aborted.add(request)
            self.at(moment + rng.uniform(0, 8 * self.verify_s), self._tell, Abort(request))
        return len(prompt) + submit.max_tokens

    def _next_turn(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        """A prompt of the same length that begins as an earlier request went."""
        earlier = self._own.choice(list(self.submitted))
        went = (*self.submitted[earlier].tokens, *self.plain[earlier][0])
        begin = went[: self._own.randint(0, len(prompt) - 1)]
        return begin + prompt[len(begin) :]

    def _plan_faults(self) -> None:
        rng, span = self.rng, self.rng.choice((20, 60, 150))
        for _ in range(rng.choice((0, 1, 2, 3, 6))):
            role: Role = rng.choice(("draft", "target"))
            self.at(rng.uniform(0, span), self._kill, role, rng.random() < 0.1)
            self._bound += 140 + 80 * self.verify_s
        for _ in range(rng.choice((0, 1, 2))):
            role = rng.choice(("draft", "draft", "target"))
            self.at(rng.uniform(0, span), self._stall, role, rng.random() < 0.3)
            self._bound += 100

    def run(self) -> None:
        """Play to the end."""
        while self._events:
            self.now, _, then, args = heapq.heappop(self._events)
            then(*args)
            promises.check_draft(self)
            promises.check_target(self)
            late = self.now > self._bound or self._number > MOST_EVENTS
            assert not late or len(self.finished) == len(self.plain), "livelock"
        promises.check_end(self)

    # -- the workers' lives

    def _start_target(self, incarnation: int) -> TargetActor:
        model = ToyModel(self.law, num_slots=self.slots, context_length=self.context["target"])
        self.target = TargetActor(self, incarnation, model)
        return self.target

    def _start_draft(self, incarnation: int) -> DraftActor:
        number = incarnation if self._moody else 0
        law = self.draft_laws.setdefault(number, DraftLaw(self.law, self._agree, number))
        model = ToyModel(law, num_slots=self.slots, context_length=self.context["draft"])
        self.draft = DraftActor(self, incarnation, model)
        return self.draft

    def _actor(self, role: Role) -> Actor:
        return self.draft if role == "draft" else self.target

    def _kill(self, role: Role, for_good: bool) -> None:
        actor, rng = self._actor(role), self.rng
        if not actor.alive or role in self.dead:
            return
        actor.alive = False
        self.seen[f"{role} killed"] += 1
        noticed = self.now + rng.uniform(0, 5)
        if for_good:
            self.dead.add(role)
            self.at(noticed, self._tell, Lost(role, actor.incarnation))
            self.at(noticed + rng.uniform(0, 30), self._tell, Gone(role, "out of order"))
            return
        if rng.random() < 0.8:  # else the next incarnation comes unannounced
            self.at(noticed, self._tell, Lost(role, actor.incarnation))
        back = self.now + rng.choice((0.1, 2, 10, 100)) * rng.random()
        self.at(back, self._restart, role, actor.incarnation + 1)

    def _restart(self, role: Role, incarnation: int) -> None:
        """Start a worker again; now and then that fails, and it is tried once more."""
        actor = (
            self._start_draft(incarnation) if role == "draft" else self._start_target(incarnation)
        )
        if self.rng.random() < 0.15:
            actor.alive = False
            self.seen[f"{role} not restarted"] += 1
            noticed = self.now + self.rng.uniform(0, 10)
            self.at(noticed, self._tell, Lost(role, incarnation))
            self.at(noticed, self._restart, role, incarnation + 1)

    def _stall(self, role: Role, for_good: bool) -> None:
        self.seen[f"{role} stalled"] += 1
        forever = for_good and role == "draft"
        self._actor(role).stall(FOREVER if forever else self.now + self.rng.uniform(0, 60))

    # -- messages

    def quiet(self, actor: Actor) -> bool:
        """Whether actor and coordinator know each other, and nothing is on its way between them."""
        worker = self.coordinator.workers[actor.role]
        met = actor.alive and worker.up and worker.incarnation == actor.incarnation
        return met and not actor.box and not self.in_transit[actor.role, actor.incarnation]

    def _arrival(self, role: Role, incarnation: int, way: str) -> float:
        """When what is sent now arrives: in the order of sending on each way."""
        hiccup = not self.clean and self.rng.random() < 0.05
        moment = self.now + self.rng.uniform(0, self.delay) * (20 if hiccup else 1)
        key = (role, incarnation, way)
        moment = self._last_arrival[key] = max(moment, self._last_arrival.get(key, 0.0))
        return moment

    def send_up(self, actor: Actor, message: FromWorker) -> None:
        if not actor.alive:
            return
        if isinstance(message, Resync):
            assert self.loss_chance, "the draft missed a commit, though none was lost"
        self.in_transit[actor.role, actor.incarnation] += 1
        moment = self._arrival(actor.role, actor.incarnation, "up")
        self.at(moment, self._arrive_up, actor, message, 1)
        if isinstance(message, Exhausted):
            self.seen[f"exhausted: {message.reason}"] += 1
        if self.rng.random() < self.duplicate_chance:
            self.seen[f"doubled: {type(message).__name__}"] += 1
            late = self.rng.choice((1, 10, 60)) * self.rng.random()
            self.at(moment + late, self._arrive_up, actor, message, 0)

    def _arrive_up(self, actor: Actor, message: FromWorker, count: int) -> None:
        self.in_transit[actor.role, actor.incarnation] -= count
        self.seen[type(message).__name__] += 1
        self._tell(message)

    def _send_down(self, send: Send) -> None:
        actor = self._actor(send.role)
        if not actor.alive or actor.incarnation != send.incarnation:
            return
        if isinstance(send.message, Commit) and self.rng.random() < self.loss_chance:
            return
        self.in_transit[send.role, send.incarnation] += 1
        moment = self._arrival(send.role, send.incarnation, "down")
        self.at(moment, self._arrive_down, actor, decode(encode(send.message)))

    def _arrive_down(self, actor: Actor, message: Message) -> None:
        self.in_transit[actor.role, actor.incarnation] -= 1
        actor.arrive(message)

    def _tell(self, event: Event) -> None:
        """Let the coordinator handle an event, and do what it says."""
        if not isinstance(event, TimerFired):
            received = decode(encode(event))
            assert received == event
            event = cast(Event, received)
        for command in self.coordinator.handle(event, self.now):
            match command:
                case Send():
                    self._send_down(command)
                case StartTimer(request, timer, seconds):
                    self.at(self.now + seconds, self._tell, TimerFired(request, timer))
                case Tokens():
                    promises.check_tokens(self, command)
                case Finish():
                    promises.check_finish(self, command)
        self.coordinator.reflect()
        self.seen["two passes"] += len(self.coordinator._scheduler._passes) == 2
        for sequence in self.coordinator.sequences.values():
            promises.check_sequence(self, sequence)
