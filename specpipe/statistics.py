"""Adds up what happens in a pipeline, for all who want to see it run.

Like the tracer it is shown events and commands once they are on their way, so it costs nobody's
time. What the coordinator counts for each request is not counted again, but added up: the figures
are the run's own. This module knows no clock, no socket, and nobody who reads.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

from specpipe.coordinator import Coordinator
from specpipe.events import Command, Event, Send
from specpipe.figures import (
    Activity,
    Counts,
    Figures,
    Recent,
    SequenceFigures,
    Setting,
    Times,
    WorkerFigures,
    rows_index,
)
from specpipe.messages import Finish, Submit, Tokens
from specpipe.metrics import RequestMetrics
from specpipe.outstanding import Outstanding
from specpipe.sequence import SequenceState
from specpipe.stopping import FINISH_REASONS
from specpipe.worker_messages import Block, Extend, Proceed, Progress, Ready, Role, Verdict

_RECENT_S = 6.0
_MOST_SEQUENCES = 32  # that are told one by one
_ROLES: tuple[Role, ...] = ("draft", "target")


class BusyTime:
    """How long a worker computed: the length of the union of stretches of time.

    Passes that several sequences share are told of by each of them, and a draft tells of a step
    that came to nothing late. So a stretch is held against the latest ones, in whatever order.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._end = -math.inf  # of the latest one
        self._latest: deque[tuple[float, float]] = deque(maxlen=16)  # disjoint

    def add(self, begun: float, ended: float) -> None:
        """The worker computed from `begun` to `ended`."""
        if begun <= self._end:
            for each in [each for each in self._latest if each[0] <= ended and each[1] >= begun]:
                self._latest.remove(each)
                self.seconds -= each[1] - each[0]
                begun, ended = min(begun, each[0]), max(ended, each[1])
        self._latest.append((begun, ended))
        self._end = max(self._end, ended)
        self.seconds += ended - begun


@dataclass(slots=True)
class _Pass:
    """A pass of the target, as far as its answers have come; `only_judges`: it read nothing."""

    begun: float
    ended: float
    rows: int
    only_judges: bool


class _Moment(NamedTuple):
    """What the rates of the last few seconds are made of; `wrong`: blocks that did not stand."""

    now: float
    generated: int
    sent: int
    accepted: int
    wrong: int
    busy: tuple[float, ...]  # of each role


class Statistics:
    """What is known of one pipeline.

    Args:
        coordinator: whose events and commands these are; only read.
        began: the moment at which the pipeline began, on the clock of all that follows.
        pipeline, pid: see Figures.
        settings: see Figures; `model` and `draft_model` name the models.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        began: float,
        *,
        pipeline: str,
        pid: int,
        settings: Mapping[str, str],
    ) -> None:
        self._coordinator = coordinator
        self._began, self._pipeline, self._pid = began, pipeline, pid
        self._settings = settings
        self._ended = Counts()  # of requests that ended
        self._num_drafts = self._wrong = 0  # blocks that were judged; of them, that did not stand
        self._per_position = self._ended.num_accepted_tokens_per_pos
        self._times = Times()
        self._busy = {role: BusyTime() for role in _ROLES}
        self._pass: _Pass | None = None
        self._step_begun = 0.0  # when the draft's latest step began
        self._ready: dict[Role, Ready] = {}
        self._outstanding = Outstanding()
        self._unread: dict[int, float] = {}  # when requests came that the target knows nothing of
        self._unanswered: dict[int, float] = {}  # the same of those that have no token yet
        self._moments: deque[_Moment] = deque(maxlen=16)
        self._on_event: dict[type, Callable[[Any, float], None]] = {
            Submit: self._on_submit,
            Ready: self._on_ready,
            Block: self._on_block,
            Progress: self._on_answer,
            Verdict: self._on_answer,
        }
        self._on_command: dict[type, Callable[[Any, float], None]] = {
            Send: self._on_send,
            Tokens: self._on_tokens,
            Finish: self._on_finish,
        }

    def note(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """An event came at this moment, and was answered by these commands."""
        if handler := self._on_event.get(type(event)):
            handler(event, now)
        for command in commands:
            if handler := self._on_command.get(type(command)):
                handler(command, now)

    def mark(self, now: float) -> None:
        """Remember this moment, for the rates of the next few seconds."""
        self._moments.append(self._moment(now, self._counted()))

    def figures(self, now: float) -> Figures:
        """All that is known; lists and histograms in it go on being filled."""
        self._settle_pass()
        sequences, running = self._coordinator.sequences, self._coordinator.running
        counts = self._counted()
        moment, before = self._moment(now, counts), self._before(now)
        told = islice(sequences.values(), _MOST_SEQUENCES)
        return Figures(
            self._pipeline,
            self._pid,
            tuple(Setting(name, value) for name, value in self._settings.items()),
            now - self._began,
            len(running),
            len(sequences) - len(running),
            counts,
            self._times,
            _recent(before, moment),
            tuple(self._worker(role, before, moment) for role in _ROLES if role in self._ready),
            tuple(_sequence(each, each.request in running, now) for each in told),
        )

    def use_setting(self, name: str, value: str) -> None:
        """A setting is another from now on."""
        self._settings = {**self._settings, name: value}

    # -- what happens

    def _on_submit(self, event: Submit, now: float) -> None:
        self._unread[event.request] = self._unanswered[event.request] = now

    def _on_ready(self, event: Ready, now: float) -> None:
        self._ready[event.role] = event

    def _on_block(self, event: Block, now: float) -> None:
        busy = self._busy["draft"]
        for begun, ended in zip(event.begun, event.ended, strict=True):
            busy.add(begun, ended)
        earlier = len(event.begun) - len(event.tokens)
        for i, source in enumerate(event.sources, earlier):
            if source == "model" and event.begun[i] != self._step_begun:  # one for all its guesses
                self._step_begun = event.begun[i]
                self._times.draft_step.add(event.ended[i] - event.begun[i])

    def _on_answer(self, event: Verdict | Progress, now: float) -> None:
        self._busy["target"].add(event.begun, event.ended)
        extend = self._outstanding.answered(event)
        if extend is None:
            return
        rows = len(extend.judged) + 1 if isinstance(event, Verdict) else 0
        if self._pass is None or self._pass.begun != event.begun:
            self._settle_pass()
            self._pass = _Pass(event.begun, event.ended, 0, only_judges=True)
        self._pass.ended = event.ended
        self._pass.rows += rows
        self._pass.only_judges &= rows == len(extend.tokens) - event.reused

    def _settle_pass(self) -> None:
        """Count the latest pass, of which all answers have come."""
        if self._pass and self._pass.only_judges and self._pass.rows:
            times = self._times.verification[rows_index(self._pass.rows)]
            times.add(self._pass.ended - self._pass.begun)
        self._pass = None

    def _on_send(self, send: Send, now: float) -> None:
        message = send.message
        if isinstance(message, Extend | Proceed):
            self._outstanding.note(message)
            if (came := self._unread.pop(message.request, None)) is not None:
                self._times.request_queue_time.add(now - came)

    def _on_tokens(self, tokens: Tokens, now: float) -> None:
        if (came := self._unanswered.pop(tokens.request, None)) is not None:
            self._times.time_to_first_token.add(now - came)
        self._num_drafts += tokens.origins[0] != "bonus"  # that alone follows an empty block
        self._wrong += tokens.origins[-1] == "recovered"
        per_position = self._per_position
        accepted = tokens.origins.count("accepted")
        per_position += [0] * (accepted - len(per_position))
        for position in range(accepted):
            per_position[position] += 1

    def _on_finish(self, finish: Finish, now: float) -> None:
        self._outstanding.forget(finish.request)
        for by_request in (self._unread, self._unanswered):
            by_request.pop(finish.request, None)
        metrics = finish.metrics
        self._ended.finished[FINISH_REASONS.index(finish.reason)] += 1
        _add(self._ended, metrics, pending=0)
        if finish.reason in {"stop", "length"}:
            self._times.e2e_request_latency.add(metrics.seconds)
            if (seconds := metrics.time_per_output_token) is not None:
                self._times.time_per_output_token.add(seconds)

    # -- what is told

    def _counted(self) -> Counts:
        counts = replace(self._ended, num_drafts=self._num_drafts)
        for sequence in self._coordinator.running.values():
            _add(counts, sequence.metrics, pending=_ahead(sequence))
        return counts

    def _moment(self, now: float, counts: Counts) -> _Moment:
        return _Moment(
            now,
            counts.generation_tokens,
            counts.num_draft_tokens,
            counts.num_accepted_tokens,
            self._wrong,
            tuple(self._busy[role].seconds for role in _ROLES),
        )

    def _before(self, now: float) -> _Moment | None:
        """The moment since which things are recent."""
        recent = [each for each in self._moments if now - each.now <= _RECENT_S]
        return next(iter(recent or islice(reversed(self._moments), 1)), None)

    def _worker(self, role: Role, before: _Moment | None, moment: _Moment) -> WorkerFigures:
        ready, state = self._ready[role], self._coordinator.workers[role]
        busy, number = 0.0, _ROLES.index(role)
        if before and moment.now > before.now:
            worked = moment.busy[number] - before.busy[number]
            busy = min(1.0, worked / (moment.now - before.now))
        held = sum(_held(sequence, role) for sequence in self._coordinator.running.values())
        return WorkerFigures(
            role,
            self._settings.get("model" if role == "target" else "draft_model", ""),
            ready.device,
            self._activity(role) if state.up else "absent",
            ready.incarnation - 1,
            moment.busy[number],
            busy,
            min(1.0, held / (ready.num_slots * ready.context_length)),
        )

    def _activity(self, role: Role) -> Activity:
        sequences = self._coordinator.running.values()
        if role == "draft":
            if any(sequence.drafting for sequence in sequences):
                return "drafting"
            return "reading" if any(sequence.reading for sequence in sequences) else "idle"
        extends = [each.extend for each in sequences if each.extend]
        if any(extend.judges for extend in extends):
            return "verifying"
        return "reading" if extends else "idle"


def _recent(before: _Moment | None, now: _Moment) -> Recent:
    if before is None or now.now <= before.now:
        return Recent()
    seconds = now.now - before.now
    sent, accepted = now.sent - before.sent, now.accepted - before.accepted
    told = accepted + now.wrong - before.wrong
    return Recent(
        seconds,
        (now.generated - before.generated) / seconds,
        accepted / sent if sent else None,
        accepted / told if told else None,
    )


def _add(counts: Counts, metrics: RequestMetrics, pending: int) -> None:
    """Add what a request came to so far; `pending` of its guesses may still be accepted."""
    counts.prompt_tokens += metrics.prompt_tokens
    counts.generation_tokens += metrics.completion_tokens
    counts.verdicts += metrics.target_forwards
    counts.num_draft_tokens += metrics.sent
    counts.num_accepted_tokens += metrics.accepted
    counts.wasted_tokens += metrics.wasted - pending
    counts.rollbacks += metrics.rollbacks
    counts.stale_blocks += metrics.stale_blocks


def _ahead(sequence: SequenceState) -> int:
    return sequence.chain_length - len(sequence.committed)


def _held(sequence: SequenceState, role: Role) -> int:
    """About how many tokens a worker's cache holds of a sequence."""
    if role == "target":
        return sequence.target_length
    return sequence.chain_length if sequence.draft.follows else 0


def _sequence(sequence: SequenceState, running: bool, now: float) -> SequenceFigures:
    metrics = sequence.metrics
    return SequenceFigures(
        sequence.request,
        running,
        metrics.prompt_tokens,
        metrics.completion_tokens,
        _ahead(sequence),
        metrics.sent,
        metrics.accepted,
        now - metrics.submitted,
    )
