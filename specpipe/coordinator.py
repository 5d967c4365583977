"""The state machine that owns the truth: events in, commands out.

Committed tokens live here alone; K/V caches, guesses, a whole worker can be lost and rebuilt from
them. The coordinator knows no clock, socket, thread or model: `handle(event, now)` is all there is,
so the same object runs under Ray, in tests with scripted workers, and on a virtual clock.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from specpipe.events import Command, Event, Send, TimerFired, urgency
from specpipe.judgement import Decided, decide
from specpipe.messages import Abort, Finish, Gone, Lost, Submit, Tokens, Vocabulary
from specpipe.metrics import RequestMetrics
from specpipe.observation import Observation
from specpipe.pace import DraftState
from specpipe.policy import Observer, Policy
from specpipe.scheduler import Scheduler
from specpipe.sequence import MOST_LOSSES, BlockFate, SequenceState
from specpipe.step import Drafted
from specpipe.stopping import FinishReason, StopRule
from specpipe.worker_messages import (
    MAX_TEXT,
    Block,
    Close,
    Closed,
    Computing,
    Exhausted,
    Failed,
    Opened,
    Progress,
    Ready,
    Resync,
    Role,
    Verdict,
)
from specpipe.worker_state import WorkerState


class Coordinator:
    """Drives any number of requests through one draft and one target.

    Args:
        policy: decides when to verify, and how much.
        lookahead: most drafted tokens ahead of the committed ones.
        prefill_chunk: most tokens fed by one extend that judges nothing.
        wait_timeout_s: how long to wait for a promised draft token.
        taking_turns: the models share their cores: the draft reads a prompt once the target has
            read it, and the target rests meanwhile, and while any sequence waits for the draft.
            Nothing else is done for it: the policy must be one that takes turns.
        observers: hear what the policy hears.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        lookahead: int = 64,
        prefill_chunk: int = 256,
        wait_timeout_s: float = 1.0,
        taking_turns: bool = False,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.sequences: dict[int, SequenceState] = {}
        self.workers: dict[Role, WorkerState] = {"draft": WorkerState(), "target": WorkerState()}
        self._scheduler = Scheduler(
            self.workers,
            policy,
            lookahead=lookahead,
            prefill_chunk=prefill_chunk,
            wait_timeout_s=wait_timeout_s,
            taking_turns=taking_turns,
        )
        self._observers = tuple(observers)
        self.use_policy(policy)
        self._token_bytes: Sequence[bytes] = ()
        self._now = 0.0
        self._commands: list[Command] = []
        self._handlers: dict[type, Callable[[Any], None]] = {
            Vocabulary: self._on_vocabulary,
            Submit: self._on_submit,
            Abort: self._on_abort,
            Lost: self._on_lost,
            Gone: self._on_gone,
            TimerFired: self._on_timer,
            Ready: self._on_ready,
            Closed: self._on_closed,
            Failed: self._on_failed,
            Opened: self._on_opened,
            Block: self._on_block,
            Computing: self._on_computing,
            Exhausted: self._on_exhausted,
            Resync: self._on_resync,
            Verdict: self._on_verdict,
            Progress: self._on_progress,
        }

    @property
    def running(self) -> Mapping[int, SequenceState]:
        """The sequences to which the target gave a slot, and that have not ended; by request."""
        return self._scheduler.running

    @property
    def awaits_word(self) -> bool:
        """Whether the target idles until the draft says a word, which it does at once, or never."""
        return self._scheduler.awaits_word

    def use_policy(self, policy: Policy) -> None:
        """Go by another policy from now on; it hears what happens, and the last one doesn't."""
        self._scheduler.policy = policy
        self._observation = Observation((policy, *self._observers))

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event at the time `now` (seconds, never decreasing); say what is to be done.

        Commands to one worker are in the order in which they must be sent.
        """
        self._now, self._commands = now, []
        self._handlers[type(event)](event)
        self._commands += self._scheduler.work(now)
        if len(self._commands) > 1:
            self._commands.sort(key=urgency)
        return self._commands

    def reflect(self) -> None:
        """To be called once the commands are on their way: what takes longer is done now.

        Unless the target idles: then the draft's next word decides, and must be heard at once.
        """
        if self._scheduler.has_time:
            self._observation.reflect()

    # -- the user

    def _on_vocabulary(self, event: Vocabulary) -> None:
        self._token_bytes = event.token_bytes

    def _on_submit(self, event: Submit) -> None:
        sequence = SequenceState(
            event.request,
            event.sampling,
            StopRule(event.sampling.stop_token_ids, event.stop, self._token_bytes),
            len(event.tokens),
            event.max_tokens,
            list(event.tokens),
            RequestMetrics(submitted=self._now, prompt_tokens=len(event.tokens)),
        )
        self.sequences[event.request] = sequence
        self._scheduler.add(sequence)
        target = self.workers["target"]
        if target.gone is not None:
            self._finish(sequence, "error", target.gone)
        elif target.up and self._left(sequence) < 1:
            self._finish(
                sequence,
                "error",
                f"{len(event.tokens)} tokens leave no room in a context of {target.context_length}",
            )

    def _on_abort(self, event: Abort) -> None:
        if sequence := self.sequences.get(event.request):
            self._finish(sequence, "abort")

    def _on_timer(self, event: TimerFired) -> None:
        sequence = self.sequences.get(event.request)
        if sequence and sequence.timer == event.timer:
            sequence.timer, sequence.silent = None, True
            sequence.metrics.timeouts += 1

    # -- the workers' lives

    def _on_ready(self, event: Ready) -> None:
        worker = self.workers[event.role]
        if event.incarnation <= worker.incarnation:
            return
        if worker.up:
            self._lose(event.role, "another took its place")
        worker.report(event)

    def _on_lost(self, event: Lost) -> None:
        worker = self.workers[event.role]
        if event.incarnation < worker.incarnation:
            return
        worker.incarnation = event.incarnation  # its Ready may come yet: no work for the dead
        if worker.up:
            self._lose(event.role, event.cause)

    def _lose(self, role: Role, cause: str) -> None:
        worker = self.workers[role]
        held, worker.held = worker.held, set()
        worker.up = False
        for sequence in list(self.sequences.values()):
            if role == "draft":
                sequence.lose_draft(held=sequence.request in held)
                continue
            sequence.lose_target(held=sequence.request in held)
            if (losses := sequence.losses["target"]) > MOST_LOSSES:
                line = f"the target was lost {losses} times in a row over this request: {cause}"
                self._finish(sequence, "error", line[:MAX_TEXT])

    def _on_gone(self, event: Gone) -> None:
        worker = self.workers[event.role]
        if worker.up:
            self._lose(event.role, event.cause)
        worker.gone = event.cause
        if event.role == "target":
            for sequence in list(self.sequences.values()):
                self._finish(sequence, "error", event.cause)

    def _on_closed(self, event: Closed) -> None:
        worker = self.workers[event.role]
        if event.incarnation == worker.incarnation:
            worker.held.discard(event.request)

    def _on_failed(self, event: Failed) -> None:
        if sequence := self._current(event.role, event):
            if event.role == "target":
                self._finish(sequence, "error", event.cause)
            else:
                sequence.draft = DraftState.FAILED
                # An open may be on its way, which the draft would follow with nobody listening.
                self._close("draft", event.request)

    # -- the draft

    def _on_opened(self, event: Opened) -> None:
        if sequence := self._drafted(event):
            sequence.draft, sequence.timer = DraftState.OPEN, None
            sequence.silent = False

    def _on_exhausted(self, event: Exhausted) -> None:
        if sequence := self._drafted(event):
            sequence.exhausted_at = max(sequence.exhausted_at, event.serial)
            if not sequence.drafting:  # others' pass may run on, but nothing is awaited any more
                sequence.timer = None
            sequence.hear_word(event.serial)

    def _on_computing(self, event: Computing) -> None:
        if sequence := self._drafted(event):
            sequence.hear_word(event.serial)

    def _on_resync(self, event: Resync) -> None:
        if sequence := self._drafted(event):
            self._commands.append(self._scheduler.open(sequence))

    def _on_block(self, event: Block) -> None:
        if (sequence := self._drafted(event)) is None:
            return
        metrics = sequence.metrics
        for begun, ended in zip(event.begun, event.ended, strict=True):
            metrics.drafting.add(begun, ended)
        drafted = metrics.drafted
        fate = sequence.take_block(event)
        sequence.hear_word(event.serial)
        new_tokens = metrics.drafted - drafted
        if new_tokens:  # the promise was kept; the next token has its own time
            sequence.timer = None
            sequence.losses["draft"] = 0
        self._observation.block(sequence, event, new_tokens, self._now)
        if fate is BlockFate.STALE:
            sequence.metrics.stale_blocks += 1
        elif fate is BlockFate.ERROR:
            sequence.metrics.protocol_errors += 1
            self._commands.append(self._scheduler.open(sequence))

    # -- the target

    def _on_progress(self, event: Progress) -> None:
        if sequence := self._answered(event):
            sequence.read(event.length)
            sequence.metrics.cached_tokens += event.reused
            sequence.metrics.prefilling.add(event.begun, event.ended)

    def _on_verdict(self, event: Verdict) -> None:
        sequence = self._answered(event)
        if sequence is None:
            return
        block = sequence.judged_block(event)
        if event.accepted > len(block):
            cause = f"the target accepted {event.accepted} of {len(block)} tokens"
            self._finish(sequence, "error", cause)
            return
        decided = decide(sequence, event, block, self._left(sequence))
        self._observation.verdict(sequence, event, block, self._now)
        sequence.target_length = len(sequence.committed) + event.accepted
        self._commit(sequence, decided, block if event.block else ())
        sequence.handover = bool(sequence.waiting)
        if decided.reason:
            self._finish(sequence, decided.reason)

    def _commit(self, sequence: SequenceState, decided: Decided, own: Sequence[Drafted]) -> None:
        """Make tokens final: commits and rollbacks alike.

        The draft hears of it once it is decided how far it may go on.
        """
        start = len(sequence.committed)
        tokens, origins, logprobs, _ = decided
        metrics = sequence.metrics
        metrics.completion_tokens += len(tokens)
        if metrics.first_token is None:
            metrics.first_token = self._now
        judged, contradicts = sequence.commit(tokens, self._now, own)
        self._observation.judged(judged)
        self._commands.append(
            Tokens(sequence.request, start, tuple(tokens), origins, contradicts, logprobs)
        )

    # -- the end

    def _finish(self, sequence: SequenceState, reason: FinishReason, cause: str = "") -> None:
        del self.sequences[sequence.request]
        self._scheduler.remove(sequence)
        self._observation.judged(sequence.unjudged())
        sequence.metrics.finished = self._now
        for role, worker in self.workers.items():
            if worker.up and sequence.request in worker.held:
                self._close(role, sequence.request)
        self._commands.append(Finish(sequence.request, reason, cause, sequence.metrics))

    def _close(self, role: Role, request: int) -> None:
        self._commands.append(Send(role, self.workers[role].incarnation, Close(request)))

    # -- small helpers

    def _left(self, sequence: SequenceState) -> int:
        return sequence.left(self.workers["target"].context_length)

    def _current(
        self,
        role: Role,
        event: Opened | Computing | Exhausted | Resync | Block | Verdict | Progress | Failed,
    ) -> SequenceState | None:
        """The sequence that a message is about, if its sender is the worker of today."""
        if event.incarnation != self.workers[role].incarnation or not self.workers[role].up:
            return None
        return self.sequences.get(event.request)

    def _drafted(
        self, event: Opened | Computing | Exhausted | Resync | Block
    ) -> SequenceState | None:
        """The sequence that a message of today's draft is about."""
        sequence = self._current("draft", event)
        return sequence if sequence and sequence.draft.follows else None

    def _answered(self, event: Verdict | Progress) -> SequenceState | None:
        """The sequence whose extend this answers; anything else is late or doubled."""
        sequence = self._current("target", event)
        if sequence and sequence.extend and sequence.extend.extend_id == event.extend_id:
            sequence.steps[0].made.answered = True
            return sequence
        return None
