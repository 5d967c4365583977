"""The embedding program's side of the hub: starts it, talks to it, and notices if it ends.

Any thread may call in; one thread of ours owns the socket. Nothing here is on the way from a
verdict to the next block.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq

from specpipe.channel import Channel, hub_address
from specpipe.figures import Figures
from specpipe.messages import (
    Abort,
    Finish,
    Ready,
    Shutdown,
    Stats,
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
            files for a recording and a trace; `about`, settings that its figures are to name (see
            Statistics); `log`, those of LogConfig.
    """

    def __init__(self, directory: Path, cores: Sequence[int], settings: dict[str, Any]) -> None:
        self._address = hub_address(directory)
        self._settings = settings | {"directory": str(directory), "cores": list(cores)}
        self._outbox: deque[ToHub] = deque()
        self._sinks: dict[int, Sink] = {}
        self._lock = threading.Lock()  # of _sinks and _ended
        self._ended = False
        self._on_ready: Callable[[Ready], None]
        self._on_figures: Callable[[Figures], None]
        self._process: subprocess.Popen[bytes]
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._thread = threading.Thread(target=self._run, name="specpipe-hub", daemon=True)

    def start(
        self,
        on_ready: Callable[[Ready], None],
        on_figures: Callable[[Figures], None] = lambda figures: None,
    ) -> None:
        """Start the process; the arguments are called in our thread.

        Args:
            on_ready: hears of workers that report for duty.
            on_figures: hears about once a second what the pipeline came to, and once at the end.
        """
        self._on_ready, self._on_figures = on_ready, on_figures
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

    def _run(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        channel = Channel.connect(self._address)
        poller = zmq.Poller()
        for source in (channel.socket, self._wake_read, self._process.stdout):
            poller.register(source, zmq.POLLIN)
        told_to_end = heard_last = False
        while not told_to_end:
            ready = {source for source, _ in poller.poll()}
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            while self._outbox:
                message = self._outbox.popleft()
                channel.send(message)
                told_to_end |= isinstance(message, Shutdown)
            heard_last = self._receive(channel)
            if self._process.stdout.fileno() in ready and not told_to_end:
                self._give_up()
                poller.unregister(self._process.stdout)
        deadline = time.monotonic() + _END_TIMEOUT_S
        while not (heard_last or self._ended) and (left := deadline - time.monotonic()) > 0:
            heard_last = self._receive(channel, left)
        channel.close(linger_s=0.1)
        self._process.stdin.close()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _receive(self, channel: Channel, timeout_s: float = 0.0) -> bool:
        """Deliver what has come; whether it was the hub's last word."""
        last = False
        for message in channel.receive(timeout_s):
            if isinstance(message, Tokens | Finish | Ready | Stats):
                self._deliver(message)
                last |= isinstance(message, Stats) and message.last
        return last

    def _deliver(self, message: Tokens | Finish | Ready | Stats) -> None:
        match message:
            case Ready():
                self._on_ready(message)
            case Stats(figures):
                self._on_figures(figures)
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
        for request, sink in sinks.items():
            sink(Finish(request, "error", _HUB_ENDED, RequestMetrics()))
