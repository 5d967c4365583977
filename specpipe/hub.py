"""The coordinator's data loop: sockets, timers and users around the state machine.

It runs in a thread of its own, in the process that embeds the pipeline, and wakes only when there
is something to do. Other threads talk to it through `post`; what becomes final reaches them
through the sink that they handed in.
"""

import heapq
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import zmq

from specpipe.channel import Channel
from specpipe.coordinator import (
    Abort,
    Command,
    Coordinator,
    Event,
    Finish,
    Lost,
    Send,
    StartTimer,
    Submit,
    TimerFired,
    Tokens,
)
from specpipe.messages import FromWorker, Ready, Role, Shutdown
from specpipe.metrics import RequestMetrics

log = logging.getLogger(__name__)

Sink = Callable[[Tokens | Finish], None]


@dataclass(frozen=True, slots=True)
class _Attach:
    """A worker's incarnation will speak on this channel from now on."""

    role: Role
    incarnation: int
    channel: Channel


class Hub:
    """Runs a coordinator until it is closed.

    Args:
        coordinator: owned by the hub's thread from `start` on.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._on_ready: Callable[[Ready], None]
        self._mail: deque[Event | _Attach | None] = deque()
        self._sinks: dict[int, Sink] = {}
        self._channels: dict[Role, tuple[int, Channel]] = {}
        self._timers: list[tuple[float, int, TimerFired]] = []
        self._poller = zmq.Poller()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._thread = threading.Thread(target=self._run, name="specpipe-hub", daemon=True)
        self._broken = ""

    # -- from any thread

    def start(self, on_ready: Callable[[Ready], None]) -> None:
        """Begin to run; `on_ready` hears, in the hub's thread, of workers that report for duty."""
        self._on_ready = on_ready
        self._thread.start()

    def submit(self, request: Submit, sink: Sink) -> None:
        """Hand in a request; `sink` is called in the hub's thread and must return at once."""
        self._sinks[request.request] = sink
        self.post(request)

    def abort(self, request: int) -> None:
        """End a request early; its sink still gets Finish."""
        self.post(Abort(request))

    def attach(self, role: Role, incarnation: int, channel: Channel) -> None:
        """Listen to a worker's incarnation; the channel belongs to the hub from here on."""
        self.post(_Attach(role, incarnation, channel))

    def post(self, item: Event | _Attach | None) -> None:
        """Put an event before the coordinator."""
        self._mail.append(item)
        with suppress(BlockingIOError):  # a full pipe will wake the hub as well
            os.write(self._wake_write, b"\0")

    def close(self) -> None:
        """Tell the workers to end, close all sockets, and end the thread."""
        if self._thread.is_alive():
            self.post(None)
            self._thread.join()
        for descriptor in (self._wake_read, self._wake_write):
            os.close(descriptor)

    # -- in the hub's thread

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            for _, channel in self._channels.values():
                channel.send(Shutdown())
                channel.close(linger_s=0.1)

    def _turn(self) -> bool:
        """Wait for something to happen and deal with it; False when the hub was closed."""
        ready = {source for source, _ in self._poller.poll(self._milliseconds_to_timer())}
        for _, channel in list(self._channels.values()):
            if channel.socket in ready:
                for message in channel.receive():
                    if isinstance(message, FromWorker):
                        self._take(message)
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        while self._mail:
            item = self._mail.popleft()
            if item is None:
                return False
            if isinstance(item, _Attach):
                self._listen(item)
            else:
                self._take(item)
        while self._timers and self._timers[0][0] <= time.monotonic():
            self._take(heapq.heappop(self._timers)[2])
        return True

    def _take(self, event: Event) -> None:
        """Let the coordinator handle an event, and do what it says."""
        if self._broken:
            if isinstance(event, Submit):
                self._give_up(event.request)
            return
        try:
            commands = self._coordinator.handle(event, time.monotonic())
        except Exception as error:  # a bug: end what runs, with its cause, rather than hang
            log.exception("the coordinator failed on %s", event)
            self._broken = f"the coordinator failed: {error!r}"
            for request in list(self._sinks):
                self._give_up(request)
            return
        for command in commands:
            self._do(command)
        if isinstance(event, Ready):
            self._on_ready(event)

    def _do(self, command: Command) -> None:
        match command:
            case Send(role, incarnation, message):
                current, channel = self._channels[role]
                if current == incarnation and not channel.send(message):
                    log.warning("the %s takes no messages; counted as lost", role)
                    self.post(Lost(role, incarnation))
            case StartTimer(request, timer, seconds):
                fired = TimerFired(request, timer)
                heapq.heappush(self._timers, (time.monotonic() + seconds, timer, fired))
            case Tokens(request):
                self._sinks[request](command)
            case Finish(request):
                self._sinks.pop(request)(command)

    def _give_up(self, request: int) -> None:
        self._sinks.pop(request)(Finish(request, "error", self._broken, RequestMetrics()))

    def _listen(self, attach: _Attach) -> None:
        if attach.role in self._channels:
            _, old = self._channels[attach.role]
            self._poller.unregister(old.socket)
            old.close()
        self._channels[attach.role] = (attach.incarnation, attach.channel)
        self._poller.register(attach.channel.socket, zmq.POLLIN)

    def _milliseconds_to_timer(self) -> int | None:
        """How long the poller may sleep: None without end."""
        if not self._timers:
            return None
        return max(0, math.ceil((self._timers[0][0] - time.monotonic()) * 1000))
