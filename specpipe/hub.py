"""The coordinator's data loop: sockets and timers around the state machine.

It runs in a process of its own, started by hub_client.py, so that no other Python work can hold it
up: in a busy program a thread waits some 5 ms for the interpreter, and meanwhile the target idles.
It sleeps until there is something to do, and ends when its parent does.
"""

import heapq
import itertools
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import zmq

from specpipe import logs
from specpipe.channel import Channel, hub_address
from specpipe.coordinator import Coordinator
from specpipe.devices import pin_process
from specpipe.dispatch import make_policy
from specpipe.events import Command, Event, Send, StartTimer, TimerFired
from specpipe.gate import Gate
from specpipe.messages import (
    Abort,
    Attach,
    Attached,
    Finish,
    FromHub,
    Gone,
    Lost,
    Submit,
    Tokens,
    UsePolicy,
    Vocabulary,
)
from specpipe.policy import Policy
from specpipe.recording import Recorder
from specpipe.reporting import Reporting
from specpipe.statistics import Statistics
from specpipe.story import tell
from specpipe.tracing import Tracer
from specpipe.watching import Window
from specpipe.worker_messages import (
    FromWorker,
    Ready,
    Role,
    Said,
    Shutdown,
    ToDraft,
    ToTarget,
)

log = logging.getLogger("specpipe.hub")  # this module is run by itself


class Hub:
    """Runs a coordinator.

    Args:
        coordinator: the hub's own from now on.
        user: the channel to those who hand in requests and workers.
        policies: the coordinator's own, by name; others are made when they are asked for.
        parent: file descriptor whose end of file says that nobody is left to work for.
        reporting: is told of everything.
        tracer: is told of everything too, if there is one.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        policies: dict[str, Policy],
        user: Channel,
        parent: int,
        reporting: Reporting,
        *,
        tracer: Tracer | None = None,
    ) -> None:
        self._coordinator = coordinator
        self._policies = policies
        self._reporting = reporting
        self._tracer = tracer
        self._user = user
        self._parent = parent
        self._workers: dict[Role, tuple[int, Channel]] = {}
        self._gate = Gate()
        self._traffic: dict[int, list[int]] = {}  # messages and bytes of each request at work
        self._untold: list[Tokens | Finish] = []
        self._due: list[tuple[float, int, TimerFired | Lost]] = []
        self._order = itertools.count()
        self._poller = zmq.Poller()
        self._poller.register(parent, zmq.POLLIN)
        self._poller.register(user.socket, zmq.POLLIN)
        self._poller.register(self._gate.socket, zmq.POLLIN)
        self._poller.register(reporting.window.socket, zmq.POLLIN)
        self._full = zmq.Poller()
        self._full.register(parent, zmq.POLLIN)
        self._full.register(user.socket, zmq.POLLOUT)

    def run(self) -> None:
        """Work until told to end, or until the parent has ended."""
        try:
            while self._turn():
                pass
        finally:
            self._reporting.tell(time.monotonic(), last=True)
            for _, channel in self._workers.values():
                channel.send(Shutdown())
                channel.close(linger_s=0.1)
            self._reporting.window.close()
            self._user.close(linger_s=0.1)
            self._gate.close()

    def _turn(self) -> bool:
        """Wait for something to happen and deal with it; False at the end."""
        ready = {source for source, _ in self._poller.poll(self._milliseconds_to_timer())}
        if self._gate.socket in ready:
            self._gate.answer()
        for role in list(self._workers):
            self._hear(role, ready)
        while self._due and self._due[0][0] <= time.monotonic():
            self._take(heapq.heappop(self._due)[2])
        if self._user.socket in ready and not self._hear_user():
            return False
        if self._reporting.window.socket in ready:
            self._reporting.window.answer(time.monotonic())
        if self._reporting.due <= time.monotonic():
            self._reporting.tell(time.monotonic())
        return self._parent not in ready

    def _hear(self, role: Role, ready: Collection[object]) -> None:
        """Take what a worker said, if it is there still, and said something."""
        incarnation, channel = self._workers.get(role, (0, None))
        if channel is None or channel.socket not in ready:
            return
        for message, size in channel.receive_sized():
            if isinstance(message, FromWorker):
                self._count(message, size)
                self._take(message)
            elif isinstance(message, Said):
                logs.write_said(message)
        if channel.malformed:  # what it was meant to say, somebody may be waiting for
            self._lose(role, incarnation, "it said what is no message")

    def _hear_user(self) -> bool:
        """Deal with what the embedding program says; False if that is to end."""
        for message in self._user.receive():
            match message:
                case Shutdown():
                    return False
                case Attach():
                    self._attach(message)
                case UsePolicy(name):
                    policy = self._policies.get(name) or make_policy(name)
                    self._coordinator.use_policy(self._policies.setdefault(name, policy))
                    self._reporting.use_policy(name)
                case Vocabulary() | Submit() | Abort() | Lost() | Gone():
                    if isinstance(message, Submit):
                        self._traffic[message.request] = [0, 0]
                    self._take(message)
        return True

    def _take(self, event: Event) -> None:
        """Let the coordinator handle an event, and do what it says."""
        now = time.monotonic()
        commands = self._coordinator.handle(event, now)
        for command in commands:
            self._do(command)
        # A user's program that wakes now may take the core on which the draft is to answer.
        if self._untold and not self._coordinator.awaits_word:
            for message in self._untold:
                self._tell(message)
            self._untold = []
        self._coordinator.reflect()
        if self._tracer:
            self._tracer.note(event, commands, now)
            self._tracer.flush()
        self._reporting.note(event, commands, now)
        if isinstance(event, Ready):
            self._tell(event)
        if log.isEnabledFor(logging.INFO):
            self._log(event, commands)

    def _do(self, command: Command) -> None:
        match command:
            case Send(role, incarnation, message):
                current, channel = self._workers.get(role, (0, None))
                if channel is None or current != incarnation:
                    return
                if size := channel.send(message):
                    self._count(message, size)
                else:
                    self._lose(role, incarnation, "it takes no more messages")
            case StartTimer(request, timer, seconds):
                self._schedule(time.monotonic() + seconds, TimerFired(request, timer))
            case Tokens():
                self._untold.append(command)
            case Finish(request):
                counts = self._traffic.pop(request)
                command.metrics.messages, command.metrics.message_bytes = counts
                self._untold.append(command)

    def _tell(self, message: FromHub) -> None:
        """Tell the user; while that one reads nothing, everything waits, and nothing is lost."""
        while not self._user.send(message):
            events = dict(self._full.poll())
            if self._parent in events:
                return

    def _log(self, event: Event, commands: Sequence[Command]) -> None:
        """Log what the workers don't log themselves."""
        if isinstance(event, Ready) or not isinstance(event, FromWorker):
            tell(log, event)
        for command in commands:
            if isinstance(command, Tokens | Finish):
                tell(log, command)

    def _lose(self, role: Role, incarnation: int, cause: str) -> None:
        """Give up a worker that is out of order: the supervisor is to end it."""
        self._detach(role)
        self._schedule(0.0, Lost(role, incarnation, cause))
        self._tell(Lost(role, incarnation, cause))

    def _count(self, message: FromWorker | ToDraft | ToTarget, size: int) -> None:
        """Note what a message costs the request that it is about, if that still runs."""
        if counts := self._traffic.get(getattr(message, "request", -1)):
            counts[0] += 1
            counts[1] += size

    def _schedule(self, moment: float, event: TimerFired | Lost) -> None:
        """Let an event happen at a moment; those of one moment in the order of their coming."""
        heapq.heappush(self._due, (moment, next(self._order), event))

    def _attach(self, attach: Attach) -> None:
        """Open a fresh endpoint for a worker's new incarnation, and say where it is."""
        role = attach.role
        self._detach(role)
        self._gate.admit(role, attach.admitted)
        try:
            channel = Channel.bind(attach.address, attach.secret_key, name=role)
        except zmq.ZMQError as error:
            cause = f"the hub cannot listen at {attach.address}: {error.strerror}"
            self._tell(Attached(role, attach.incarnation, attach.address, cause))
            return
        self._workers[role] = (attach.incarnation, channel)
        self._poller.register(channel.socket, zmq.POLLIN)
        self._tell(Attached(role, attach.incarnation, channel.address))

    def _detach(self, role: Role) -> None:
        """Hear and tell a worker nothing more, if there is one."""
        if role in self._workers:
            _, channel = self._workers.pop(role)
            self._poller.unregister(channel.socket)
            channel.close()

    def _milliseconds_to_timer(self) -> int:
        """How long the poller may sleep."""
        due = min(self._reporting.due, self._due[0][0]) if self._due else self._reporting.due
        return max(0, math.ceil((due - time.monotonic()) * 1000))


def main() -> None:
    """Serve one pipeline; the only argument is JSON: see HubClient.

    In nobody's child: Ray's workers kill their children when they end, and the sockets would stay.
    """
    if os.fork():
        os._exit(0)
    settings: dict[str, Any] = json.loads(sys.argv[1])
    pin_process(settings.pop("cores"))
    directory = Path(settings.pop("directory"))
    user = Channel.bind(hub_address(directory))
    name: str = settings.pop("policy")
    policies = {name: make_policy(name)}
    record, trace = settings.pop("record", None), settings.pop("trace", None)
    about: dict[str, str] = settings.pop("about", {})
    pid: int = settings.pop("pid")  # of whoever is served
    logs.set_up(logs.LogConfig(**settings.pop("log", {})), "coordinator", directory.name)
    try:
        with ExitStack() as files:
            observers, tracer = [], None
            if record:
                file = files.enter_context(open(record, "a", encoding="utf-8"))
                observers.append(Recorder(file))
            if trace:
                file = files.enter_context(open(trace, "a", encoding="utf-8"))
                tracer = Tracer(file)
                files.callback(tracer.close)
            coordinator = Coordinator(policies[name], observers=observers, **settings)
            statistics = Statistics(
                coordinator,
                time.monotonic(),
                pipeline=directory.name,
                pid=pid,
                settings=about | {"policy": name},
            )
            reporting = Reporting(statistics, user, Window(directory, statistics.figures))
            parent = sys.stdin.fileno()
            Hub(coordinator, policies, user, parent, reporting, tracer=tracer).run()
    finally:  # a parent that was killed could not do it
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
