"""What follows from the state: who gets a slot, what the target does next, what drafts are told.

The target makes one forward pass at a time, for all sequences that have something for it: blocks to
be judged, and prompts to be read. Or it is told of its next one while it is at one, if the policy
wants it so. The coordinator tells this module what happened; it has the last
word on nothing but time, so that no decision of it can change what is written.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from specpipe.events import Command, Send, StartTimer
from specpipe.observation import situation
from specpipe.pace import DraftState
from specpipe.policy import Decision, Policy
from specpipe.reading import reading_part
from specpipe.sequence import SequenceState
from specpipe.worker_messages import Role, ToDraft, ToTarget
from specpipe.worker_state import Pass, WorkerState


class Scheduler:
    """Gives the workers their work.

    Args:
        workers: what is known of them.
        policy: decides when to verify, and how much; may be replaced at any time.
        lookahead, prefill_chunk, wait_timeout_s, taking_turns: see Coordinator.
    """

    def __init__(
        self,
        workers: Mapping[Role, WorkerState],
        policy: Policy,
        *,
        lookahead: int,
        prefill_chunk: int,
        wait_timeout_s: float,
        taking_turns: bool,
    ) -> None:
        self.policy = policy
        self._workers = workers
        self._lookahead = lookahead
        self._prefill_chunk = prefill_chunk
        self._wait_timeout_s = wait_timeout_s
        self._taking_turns = taking_turns
        self._queue: OrderedDict[int, SequenceState] = OrderedDict()
        self._running: dict[int, SequenceState] = {}  # the target gave them a slot, perhaps lately
        self._passes: list[Pass] = []  # on their way, in order
        self._last_id = 0
        self._now = 0.0
        self._commands: list[Command] = []

    # -- what the coordinator tells

    def add(self, sequence: SequenceState) -> None:
        """A request came."""
        self._queue[sequence.request] = sequence

    @property
    def running(self) -> Mapping[int, SequenceState]:
        """Those to which the target gave a slot, and that have not ended; by request."""
        return self._running

    @property
    def has_time(self) -> bool:
        """Whether the target is at work, or there is no work: nothing waits for our word."""
        return not self._running or self._target_works

    @property
    def awaits_word(self) -> bool:
        """Whether the target idles until the draft says a word that takes next to no time.

        A timer runs then, so it won't be for long.
        """
        waits = (each for each in self._running.values() if each.timer is not None)
        return any(map(self._owes_word, waits)) and not self._target_works

    def remove(self, sequence: SequenceState) -> None:
        """A request ended."""
        self._queue.pop(sequence.request, None)
        self._running.pop(sequence.request, None)

    def open(self, sequence: SequenceState) -> Send:
        """Hand the whole chain to the draft, once more or for the first time."""
        self._workers["draft"].held.add(sequence.request)
        return self._to("draft", sequence.open(self.limits(sequence)))

    def work(self, now: float) -> list[Command]:
        """All that is to be done at the time `now`, after something happened."""
        self._now, self._commands = now, []
        self._admit()
        self._settle_passes()
        if not (self._passes and self._passes[0].answered):  # of one pass, all answers are heard
            while self._takes_pass and self._begin_pass():
                pass
            for sequence in self._running.values():
                if sequence.draft.follows:
                    self._inform_draft(sequence)
        return self._commands

    @property
    def _target_works(self) -> bool:
        return any(sequence.extend for sequence in self._running.values())

    # -- who takes part

    def _admit(self) -> None:
        """Give free slots to sequences in the order of their coming."""
        target, draft = self._workers["target"], self._workers["draft"]
        for request in self._running:  # after a restart, before any newcomer
            if request not in target.held and target.free > 0:
                target.held.add(request)
        while self._queue and target.free > 0:
            request, sequence = self._queue.popitem(last=False)
            target.held.add(request)
            self._running[request] = sequence
        for sequence in self._running.values():
            if sequence.draft is not DraftState.ABSENT or draft.free < 1:
                continue
            early = self._taking_turns and sequence.behind > 0
            if not (early or self._prices(DraftState.OPEN)):  # else it would add nothing
                self._commands.append(self.open(sequence))

    # -- the target

    def _settle_passes(self) -> None:
        """Forget passes that are over, and note that the next one has begun."""
        first = self._passes[:1]
        going = {step.made for sequence in self._running.values() for step in sequence.steps}
        self._passes = [each for each in self._passes if each in going]
        if self._passes and self._passes[:1] != first:
            self._passes[0].begun = self._now

    @property
    def _takes_pass(self) -> bool:
        """Whether the target is to be given another pass, if there is one for it."""
        if not self._passes:
            return True
        if len(self._passes) > 1:
            return False
        followed = any(sequence.draft.follows for sequence in self._running.values())
        if not (followed or self._taking_turns):
            return True
        return self.policy.runs_ahead(len(self._running))

    def _begin_pass(self) -> bool:
        """Let the target go to work, or wait for the draft; whether it has got a pass."""
        held = self._workers["target"].held
        ready = [
            sequence
            for sequence in self._running.values()
            if sequence.request in held and sequence.takes_step(self._context_length)
        ]
        reading = [sequence for sequence in ready if self._taking_turns and sequence.reading]
        if reading:
            self._wait(reading)
            return False
        ready, parts = self._share_reading(ready)
        spare = self._spare()
        blocks, late = self._choose_blocks(ready, spare)
        if late:
            self._wait(late)
            if spare > 0:
                self._hurry(late[0], spare)
            if self._taking_turns or not (blocks or parts) or any(map(self._owes_word, late)):
                return False
        if blocks or parts:
            self._send_pass(blocks, parts)
        return bool(blocks or parts)

    def _spare(self) -> float:
        """Seconds for which the next pass need not be sent."""
        if not self._passes:
            return 0.0
        made = self._passes[0]
        return self.policy.spare(made.rows, self._now - made.begun)

    def _hurry(self, sequence: SequenceState, seconds: float) -> None:
        """Have the next pass sent before the one that the target is at has ended."""
        made = self._passes[0]
        if not made.hurried:
            made.hurried = True
            self._commands.append(StartTimer(sequence.request, self._next_id(), seconds))

    def _share_reading(
        self, sequences: Iterable[SequenceState]
    ) -> tuple[list[SequenceState], list[tuple[SequenceState, int]]]:
        """Who can be judged in this pass, and who only reads on, how many tokens each."""
        sequences, ready, parts = list(sequences), [], []
        writing = any(sequence.behind == 0 for sequence in self._running.values())
        room = reading_part(self._prefill_chunk, beside_others=writing)
        for sequence in sequences:
            if sequence.behind <= room:
                ready.append(sequence)
                room -= sequence.behind
            elif room:
                parts.append((sequence, room))
                room = 0
        return ready, parts

    def _choose_blocks(
        self, sequences: list[SequenceState], spare: float
    ) -> tuple[list[tuple[SequenceState, Decision]], list[SequenceState]]:
        """Whose block can go into a pass, and what was decided about it; who waits for the draft.

        Only the latter are told at once how far their draft goes on: who is ready stays so.
        """
        for sequence in sequences:
            sequence.prices = self._prices(sequence.draft)
        free = {role: worker.guesses_freely for role, worker in self._workers.items()}
        situations = [
            situation(each, each.most_guesses(self._context_length), self._now, **free)
            for each in sequences
        ]
        blocks, late = [], []
        decisions = self.policy.decide_all(situations, spare) if situations else []
        in_time = spare > 0 or not self._passes
        for sequence, seen, decision in zip(sequences, situations, decisions, strict=True):
            kept = in_time and seen.may_wait and self._owes_word(sequence)
            if decision.send is None or kept:
                sequence.pause(decision.ahead)
                sequence.awaited |= kept
                late.append(sequence)
            else:
                blocks.append((sequence, decision))
        return blocks, late

    def _send_pass(
        self, blocks: list[tuple[SequenceState, Decision]], parts: list[tuple[SequenceState, int]]
    ) -> None:
        for sequence, decision in blocks:
            sequence.pause(decision.ahead)
        rests = all(map(self._rests, self._running.values()))
        left = len(blocks) + len(parts)
        made = Pass(left, 0, bool(parts), bool(self._passes), self._now)
        if not made.queued:
            decided = (each.decided for each, _ in blocks if each.decided is not None)
            made.waited = self._now - max(decided, default=self._now)
        self._passes.append(made)
        for sequence, decision in blocks:
            left -= 1
            made.reads |= sequence.behind > 0
            assert decision.send is not None
            limit = sequence.longest_chain(self._context_length)
            message = sequence.verify(
                self._next_id(), decision.send, made, rests=rests, more=left > 0, limit=limit
            )
            self._commands.append(self._to("target", message))
        for sequence, count in parts:
            left -= 1
            message = sequence.prefill(self._next_id(), count, made, more=left > 0)
            self._commands.append(self._to("target", message))

    def _prices(self, draft: DraftState) -> tuple[float, ...]:
        """At which the target is to make guesses of its own, if it can and the policy wants it."""
        if not self._workers["target"].guesses_freely:
            return ()
        return self.policy.prices(len(self._running), draft)[: self._lookahead]

    def _wait(self, sequences: list[SequenceState]) -> None:
        """Let these sequences wait until the draft says something, but not for ever."""
        for sequence in sequences:
            sequence.handover = False
            if sequence.timer is None:
                sequence.timer = self._next_id()
                self._commands.append(
                    StartTimer(sequence.request, sequence.timer, self._wait_timeout_s)
                )

    def _owes_word(self, sequence: SequenceState) -> bool:
        """Whether nothing waits but the target, for a word that the draft says at once.

        A draft whose model reads somebody's prompt says it after that.
        """
        draft = self._workers["draft"]
        if sequence.word_due is None or sequence.waiting or sequence.prices:
            return False
        if not draft.guesses_freely:
            return False
        reads = draft.computes and any(each.reading for each in self._running.values())
        return not reads and self.policy.awaits_word(len(self._running))

    def _rests(self, sequence: SequenceState) -> bool:
        """Whether no model works for this sequence beside the target, up to the next commit."""
        if not (sequence.draft.follows and self._workers["draft"].computes):
            return True
        return self.limits(sequence)[1] <= sequence.chain_length

    # -- the draft

    def _inform_draft(self, sequence: SequenceState) -> None:
        """Send the draft what was committed, and how far it may go on."""
        if sequence.hushed:
            return
        rested = not sequence.drafting
        commit = sequence.news(self.limits(sequence))
        if commit is not None:
            if rested and not commit.tokens:
                sequence.pace.restart(self._now, resting=True, fresh=False)
            self._commands.append(self._to("draft", commit))

    def limits(self, sequence: SequenceState) -> tuple[int, int]:
        """How long the draft's chain may get now, and from which length on its model rests."""
        return sequence.chain_limits(self._context_length, self._lookahead)

    # -- small helpers

    @property
    def _context_length(self) -> int:
        return self._workers["target"].context_length

    def _to(self, role: Role, message: ToDraft | ToTarget) -> Send:
        return Send(role, self._workers[role].incarnation, message)

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id
