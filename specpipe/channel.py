"""ZeroMQ sockets that carry messages.py: one pair of sockets for one incarnation of one worker.

Every incarnation gets an endpoint of its own, so a socket that reconnects can never hand a new
worker the commands of the old one. On one host that is a Unix socket in a directory that only its
owner may enter; across hosts, TCP, encrypted, with a key for each end (gate.py). There a connection
is lost for good if it is lost once: what was on its way is unknown, so the worker gives up, and
another incarnation takes its place. Whatever arrives and is no message is dropped and counted.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import zmq

from specpipe.clock import RemoteClock
from specpipe.codec import MAX_MESSAGE_BYTES, decode, encode
from specpipe.errors import ProtocolError, SpecpipeError, WorkerError
from specpipe.gate import WorkerKeys
from specpipe.leftovers import FOLDER_PREFIX, HUB, sweep
from specpipe.messages import Message, Ping, Pong
from specpipe.worker_messages import Role

_HIGH_WATER_MARK = 10_000
_LONGEST_PATH = 107  # sockaddr_un, less the final zero
_HEARTBEAT_S = 5.0
_SILENCE_S = 30.0  # long, since models may keep all cores busy
_CONNECT_S = 10.0
_NEVER_MS = 2**31 - 1  # ZeroMQ's own never, -1, also drops what has come and was not read yet
_LOSS = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


@contextmanager
def socket_directory() -> Iterator[Path]:
    """A fresh directory for sockets, mode 0700, removed at the end; those of the dead go now.

    Raises:
        SpecpipeError: when the paths would be too long for Unix sockets.
    """
    sweep()
    directory = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    try:
        if len(str(directory / "target-999999")) > _LONGEST_PATH:
            raise SpecpipeError(
                f"the temporary folder {directory.parent} has too long a path for Unix sockets: "
                "set TMPDIR to a shorter one"
            )
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def hub_address(directory: Path) -> str:
    """Where the hub listens to the program that embeds it."""
    return f"ipc://{directory / HUB}"


def worker_address(directory: Path, role: Role, incarnation: int) -> str:
    """Where the hub listens to one incarnation of a worker."""
    return f"ipc://{directory}/{role}-{incarnation}"


def network_address(host: str) -> str:
    """Where the hub can listen to a worker on another node: at a port that the system chooses."""
    return f"tcp://[{host}]:*" if ":" in host else f"tcp://{host}:*"


class Channel:
    """One end of a connection. Not thread-safe: it belongs to the thread that uses it.

    Times in what arrives from another host are converted to the clock of the end that bound.
    """

    def __init__(
        self, socket: zmq.Socket[bytes], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._socket, self._now = socket, clock
        self._remote: RemoteClock | None = None  # of the other end, if that is on another host
        self._loss: zmq.Socket[bytes] | None = None  # becomes readable when the connection is lost
        self.malformed = 0

    @classmethod
    def bind(cls, address: str, secret_key: bytes = b"", name: str = "") -> "Channel":
        """The coordinator's end of a fresh endpoint, such as `ipc:///run/x/target-1`.

        Args:
            address: may leave the port of TCP open, as `*`.
            secret_key: of this end; TCP needs one.
            name: by which the process's gate knows the endpoint. Without a gate, nobody gets in.

        Raises:
            zmq.ZMQError: if that can't be.
        """
        if address.startswith("tcp:") and not secret_key:
            raise ValueError(f"{address} would be open to the network without a key")
        socket = _pair(address)
        channel = cls(socket)
        if secret_key:
            socket.curve_server = True
            socket.curve_secretkey = secret_key
            socket.zap_domain = name.encode()
            socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
            channel._remote = RemoteClock()
        try:
            socket.bind(address)
        except zmq.ZMQError:
            channel.close()
            raise
        return channel

    @classmethod
    def connect(
        cls,
        address: str,
        keys: WorkerKeys | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> "Channel":
        """The worker's end; over TCP, with its keys. `clock` gives the times in its messages."""
        socket = _pair(address)
        channel = cls(socket, clock)
        if keys:
            socket.curve_serverkey = keys.hub
            socket.curve_publickey, socket.curve_secretkey = keys.public, keys.secret
            socket.reconnect_ivl = _NEVER_MS
            socket.connect_timeout = int(_CONNECT_S * 1000)
            channel._loss = socket.get_monitor_socket(_LOSS)
        socket.connect(address)
        return channel

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """For a poller."""
        return self._socket

    @property
    def address(self) -> str:
        """What this end is bound to, its port included."""
        return self._socket.get_string(zmq.LAST_ENDPOINT)

    def send(self, message: Message) -> int:
        """Send without waiting; returns how many bytes: 0 if the other end is gone or too slow."""
        data = encode(message)
        try:
            self._socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            return 0
        return len(data)

    def receive(self, timeout_s: float | None = 0.0) -> list[Message]:
        """All messages that have arrived, after waiting up to `timeout_s` for the first.

        None waits without end. The list is empty when the time is over, or if nothing came but what
        the two ends have to say to each other.

        Raises:
            WorkerError: if the connection to another host is lost, and all that came through it
                has been received.
        """
        return [message for message, _ in self.receive_sized(timeout_s)]

    def receive_sized(self, timeout_s: float | None = 0.0) -> list[tuple[Message, int]]:
        """As `receive`, each message with its bytes on the wire."""
        messages: list[tuple[Message, int]] = []
        # To wait within the call is the shortest way to wake up.
        flags = 0 if timeout_s is None and not self._loss else zmq.NOBLOCK
        arrived = not flags or self._wait(timeout_s)
        while arrived:
            try:
                data = self._socket.recv(flags)
                message = decode(data)
            except ProtocolError:
                self.malformed += 1
            except zmq.Again:
                break
            else:
                if not self._is_ours(message):
                    messages.append((self._converted(message), len(data)))
            flags, arrived = zmq.NOBLOCK, self._has_more()
        return messages

    def close(self, linger_s: float = 0.0) -> None:
        """Close; what is not delivered within `linger_s` is dropped."""
        if self._loss:
            self._socket.disable_monitor()
            self._loss.close(linger=0)
        self._socket.close(linger=int(linger_s * 1000))

    def _has_more(self) -> bool:
        """Whether something has come and was not read."""
        events = self._socket.get(zmq.EVENTS)
        return isinstance(events, int) and bool(events & zmq.POLLIN)

    def _wait(self, timeout_s: float | None) -> bool:
        """Whether something has come within that time."""
        milliseconds = None if timeout_s is None else int(timeout_s * 1000)
        if not self._loss:
            return bool(self._socket.poll(milliseconds)) if milliseconds else self._has_more()
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._loss, zmq.POLLIN)
        ready = {source for source, _ in poller.poll(milliseconds)}
        if self._loss in ready and self._socket not in ready:
            raise WorkerError(f"the connection to the coordinator at {self.address} was lost")
        return self._socket in ready

    def _is_ours(self, message: Message) -> bool:
        """Whether a message is between the two ends; then it has been dealt with."""
        match message:
            case Ping(sent):
                self.send(Pong(sent, self._now()))
            case Pong():
                if self._remote:
                    self._remote.hear(message, self._now())
            case _:
                if self._remote and (question := self._remote.question(self._now())):
                    self.send(question)
                return False
        return True

    def _converted(self, message: Message) -> Message:
        return self._remote.converted(message) if self._remote else message


def _pair(address: str) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
    socket.linger = 0
    socket.sndhwm = socket.rcvhwm = _HIGH_WATER_MARK
    socket.maxmsgsize = MAX_MESSAGE_BYTES
    if address.startswith("tcp:"):
        socket.ipv6 = "[" in address
        socket.heartbeat_ivl = int(_HEARTBEAT_S * 1000)
        socket.heartbeat_timeout = int(_SILENCE_S * 1000)
    return socket
