"""The embedding program's side of the hub: starts it, talks to it, and notices if it ends.

Any thread may call in; one thread of ours owns the socket. Nothing here is on the way from a
verdict to the next block.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq

from specpipe.channel import Channel, hub_address
from specpipe.errors import WorkerError
from specpipe.figures import Figures
from specpipe.messages import (
    Abort,
    Attach,
    Attached,
    Finish,
    FromHub,
    Lost,
    Stats,
    Submit,
    ToHub,
    Tokens,
)
from specpipe.metrics import RequestMetrics
from specpipe.worker_messages import Ready, Role, Shutdown

Sink = Callable[[Tokens | Finish], None]

_END_TIMEOUT_S = 2.0
_CLOSED = "the pipeline was closed before the answer was whole"
_HUB_ENDED = "the coordinator's process ended unexpectedly; its last words are on standard error"


class HubClient:
    """Runs a hub in a process of its own.

    Args:
        directory: for all sockets of the pipeline; the hub removes it if we can't.
        cores: to pin the process to, if any are given.
        settings: `policy` and the arguments of Coordinator; `record` and `trace`,
            files for a recording and a trace; `about`, settings that its figures are to name (see
            Statistics); `log`, those of LogConfig.
        most_waiting: how many requests may be handed in and not finished.
    """

    def __init__(
        self,
        directory: Path,
        cores: Sequence[int],
        settings: dict[str, Any],
        *,
        most_waiting: int = 1024,
    ) -> None:
        self._address = hub_address(directory)
        self._settings = settings | {
            "directory": str(directory),
            "cores": list(cores),
            "pid": os.getpid(),
        }
        self._most_waiting = most_waiting
        self._outbox: deque[ToHub] = deque()
        self._sinks: dict[int, Sink] = {}
        self._attaching: dict[tuple[Role, int], Future[str]] = {}
        self._lock = threading.Lock()  # of _sinks, _attaching, _cause and _wake_write
        self._room = threading.Condition(self._lock)
        self._cause = ""  # why nothing can be handed in any more
        self._on_worker: Callable[[Ready | Lost], None]
        self._on_figures: Callable[[Figures], None]
        self._process: subprocess.Popen[bytes]
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._thread = threading.Thread(target=self._run, name="specpipe-hub", daemon=True)

    def start(
        self,
        on_worker: Callable[[Ready | Lost], None],
        on_figures: Callable[[Figures], None] = lambda figures: None,
    ) -> None:
        """Start the process; the arguments are called in our thread.

        Args:
            on_worker: hears of workers that come and go.
            on_figures: hears about once a second what the pipeline came to, and once at the end.
        """
        self._on_worker, self._on_figures = on_worker, on_figures
        self._process = subprocess.Popen(  # noqa: S603 (our own module)
            [sys.executable, "-P", "-m", "specpipe.hub", json.dumps(self._settings)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # its cores are those of models
            stdin=subprocess.PIPE,  # its end tells the hub that we are gone
            stdout=subprocess.PIPE,  # its end tells us that the hub is
            start_new_session=True,  # Ctrl-C is for us
        )
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the process ended, or was told to."""
        with self._lock:
            return bool(self._cause)

    def submit(self, request: Submit, sink: Sink) -> None:
        """Hand in a request; `sink` is called in our thread and must return at once.

        Waits while as many requests as are allowed have not finished: whoever hands in more than
        can be answered is slowed. In a sink that would be for ever, so there it doesn't wait.
        """
        with self._room:
            if threading.current_thread() is not self._thread:
                self._room.wait_for(lambda: self._cause or len(self._sinks) < self._most_waiting)
            cause = self._cause
            if not cause:
                self._sinks[request.request] = sink
        if cause:
            sink(Finish(request.request, "error", cause, RequestMetrics()))
        else:
            self.post(request)

    def attach(self, message: Attach) -> "Future[str]":
        """Let the hub listen to a new incarnation of a worker.

        Returns:
            The address at which it does; or a WorkerError, if it can't.
        """
        future: Future[str] = Future()
        with self._lock:
            if self._cause:
                future.set_exception(WorkerError(self._cause))
            else:
                self._attaching[message.role, message.incarnation] = future
        self.post(message)
        return future

    def abort(self, request: int) -> None:
        """End a request early; its sink still gets Finish."""
        self.post(Abort(request))

    def post(self, message: ToHub) -> None:
        """Send something to the hub, if it is still there."""
        with self._lock:
            if not self._cause:
                self._put(message)

    def close(self) -> None:
        """End the hub, which tells the workers to end; free everything.

        Requests that have not finished end with an error.
        """
        with self._lock:
            self._put(Shutdown())
        self._thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _put(self, message: ToHub) -> None:
        self._outbox.append(message)
        with suppress(BlockingIOError):  # a full pipe will wake the thread as well
            os.write(self._wake_write, b"\0")

    def kill(self) -> None:
        """End the hub as a crash would."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _run(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.wait()  # it has left its work to a child, in the same process group
        channel = Channel.connect(self._address)
        try:
            self._work(channel, self._process.stdout.fileno())
        finally:
            self._give_up(_CLOSED)
            channel.close(linger_s=0.1)
            self._process.stdin.close()
            if not select.select([self._process.stdout], [], [], _END_TIMEOUT_S)[0]:
                self.kill()
            self._process.stdout.close()

    def _work(self, channel: Channel, hub: int) -> None:
        """Carry messages until told to end; `hub` is a file whose end is the hub's."""
        poller = zmq.Poller()
        poller.register(self._wake_read, zmq.POLLIN)
        poller.register(hub, zmq.POLLIN)
        heard_last = False
        while not self._send_all(channel):
            # It takes no more for now; what it says is heard all the same, so neither side blocks.
            full = zmq.POLLOUT if self._outbox else 0
            poller.register(channel.socket, zmq.POLLIN | full)
            ready = {source for source, _ in poller.poll()}
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            heard_last = self._receive(channel)
            if hub in ready:
                self._give_up(_HUB_ENDED)
                poller.unregister(hub)
        deadline = time.monotonic() + _END_TIMEOUT_S
        while not (heard_last or self._cause) and (left := deadline - time.monotonic()) > 0:
            heard_last = self._receive(channel, left)

    def _receive(self, channel: Channel, timeout_s: float = 0.0) -> bool:
        """Deliver what has come; whether it was the hub's last word."""
        last = False
        for message in channel.receive(timeout_s):
            if isinstance(message, FromHub):
                self._deliver(message)
                last |= isinstance(message, Stats) and message.last
        return last

    def _send_all(self, channel: Channel) -> bool:
        """Send what the hub takes; whether the end was among it, or is due."""
        while self._outbox:
            message = self._outbox[0]
            if not channel.send(message):
                return any(isinstance(waiting, Shutdown) for waiting in self._outbox)
            self._outbox.popleft()
            if isinstance(message, Shutdown):
                return True
        return False

    def _deliver(self, message: FromHub) -> None:
        match message:
            case Ready() | Lost():
                self._on_worker(message)
            case Stats(figures):
                self._on_figures(figures)
            case Attached(role, incarnation, address, cause):
                with self._lock:
                    future = self._attaching.pop((role, incarnation), None)
                if future and cause:
                    future.set_exception(WorkerError(cause))
                elif future:
                    future.set_result(address)
            case Tokens(request):
                if sink := self._sinks.get(request):  # else it has been given up
                    sink(message)
            case Finish(request):
                with self._room:
                    sink = self._sinks.pop(request, None)
                    self._room.notify()
                if sink:
                    sink(message)

    def _give_up(self, cause: str) -> None:
        """The hub is gone: end every request with an error, and take no more."""
        with self._room:
            self._cause = self._cause or cause
            sinks, self._sinks = self._sinks, {}
            attaching, self._attaching = self._attaching, {}
            self._room.notify_all()
        for future in attaching.values():
            future.set_exception(WorkerError(self._cause))
        for request, sink in sinks.items():
            sink(Finish(request, "error", self._cause, RequestMetrics()))
