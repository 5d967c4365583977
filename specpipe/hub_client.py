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
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq

from specpipe.channel import Channel, hub_address
from specpipe.errors import WorkerError
from specpipe.messages import (
    Abort,
    Attach,
    Attached,
    Finish,
    FromHub,
    Ready,
    Role,
    Shutdown,
    Submit,
    ToHub,
    Tokens,
)
from specpipe.metrics import RequestMetrics

Sink = Callable[[Tokens | Finish], None]

_END_TIMEOUT_S = 2.0
_HUB_ENDED = "the coordinator's process ended unexpectedly; its last words are on standard error"


class HubClient:
    """Runs a hub in a process of its own.

    Args:
        directory: for all sockets of the pipeline; the hub removes it if we can't.
        cores: to pin the process to. Best are the target's: between a verdict and the next block,
            when every moment counts, they idle.
        settings: `policy` and the arguments of Coordinator; `record` and `trace`,
            files for a recording and a trace.
    """

    def __init__(self, directory: Path, cores: Sequence[int], settings: dict[str, Any]) -> None:
        self._address = hub_address(directory)
        self._settings = settings | {"directory": str(directory), "cores": list(cores)}
        self._outbox: deque[ToHub] = deque()
        self._sinks: dict[int, Sink] = {}
        self._attaching: dict[tuple[Role, int], Future[str]] = {}
        self._lock = threading.Lock()  # of _sinks, _attaching and _ended
        self._ended = False
        self._on_ready: Callable[[Ready], None]
        self._process: subprocess.Popen[bytes]
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._thread = threading.Thread(target=self._run, name="specpipe-hub", daemon=True)

    def start(self, on_ready: Callable[[Ready], None]) -> None:
        """Start the process; `on_ready` hears, in our thread, of workers that report for duty."""
        self._on_ready = on_ready
        self._process = subprocess.Popen(  # noqa: S603 (our own module)
            [sys.executable, "-P", "-m", "specpipe.hub", json.dumps(self._settings)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # its cores are the target's
            stdin=subprocess.PIPE,  # its end tells the hub that we are gone
            stdout=subprocess.PIPE,  # its end tells us that the hub is
            start_new_session=True,  # Ctrl-C is for us
        )
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the process ended without being told to."""
        with self._lock:
            return self._ended

    def submit(self, request: Submit, sink: Sink) -> None:
        """Hand in a request; `sink` is called in our thread and must return at once."""
        with self._lock:
            ended = self._ended
            if not ended:
                self._sinks[request.request] = sink
        if ended:
            sink(Finish(request.request, "error", _HUB_ENDED, RequestMetrics()))
        self.post(request)

    def attach(self, message: Attach) -> "Future[str]":
        """Let the hub listen to a new incarnation of a worker.

        Returns:
            The address at which it does; or a WorkerError, if it can't.
        """
        future: Future[str] = Future()
        with self._lock:
            if self._ended:
                future.set_exception(WorkerError(_HUB_ENDED))
            else:
                self._attaching[message.role, message.incarnation] = future
        self.post(message)
        return future

    def abort(self, request: int) -> None:
        """End a request early; its sink still gets Finish."""
        self.post(Abort(request))

    def post(self, message: ToHub) -> None:
        """Send something to the hub."""
        self._outbox.append(message)
        with suppress(BlockingIOError):  # a full pipe will wake the thread as well
            os.write(self._wake_write, b"\0")

    def close(self) -> None:
        """End the hub, which tells the workers to end; free everything."""
        self.post(Shutdown())
        self._thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def kill(self) -> None:
        """End the hub as a crash would."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _run(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.wait()  # it has left its work to a child, in the same process group
        channel = Channel.connect(self._address)
        poller = zmq.Poller()
        for source in (channel.socket, self._wake_read, self._process.stdout):
            poller.register(source, zmq.POLLIN)
        told_to_end = False
        while not told_to_end:
            ready = {source for source, _ in poller.poll()}
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            while self._outbox:
                message = self._outbox.popleft()
                channel.send(message)
                told_to_end |= isinstance(message, Shutdown)
            for received in channel.receive():
                if isinstance(received, FromHub):
                    self._deliver(received)
            if self._process.stdout.fileno() in ready and not told_to_end:
                self._give_up()
                poller.unregister(self._process.stdout)
        channel.close(linger_s=0.1)
        self._process.stdin.close()
        if not select.select([self._process.stdout], [], [], _END_TIMEOUT_S)[0]:
            self.kill()
        self._process.stdout.close()

    def _deliver(self, message: FromHub) -> None:
        match message:
            case Ready():
                self._on_ready(message)
            case Attached(role, incarnation, address, cause):
                with self._lock:
                    future = self._attaching.pop((role, incarnation), None)
                if future and cause:
                    future.set_exception(WorkerError(cause))
                elif future:
                    future.set_result(address)
            case Tokens(request):
                self._sinks[request](message)
            case Finish(request):
                with self._lock:
                    sink = self._sinks.pop(request)
                sink(message)

    def _give_up(self) -> None:
        """The hub is gone: end every request with an error."""
        with self._lock:
            self._ended = True
            sinks, self._sinks = self._sinks, {}
            attaching, self._attaching = self._attaching, {}
        for future in attaching.values():
            future.set_exception(WorkerError(_HUB_ENDED))
        for request, sink in sinks.items():
            sink(Finish(request, "error", _HUB_ENDED, RequestMetrics()))
