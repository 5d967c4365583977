"""ZeroMQ sockets that carry messages.py: one pair of sockets for one incarnation of one worker.

Every incarnation gets an endpoint of its own, so a socket that reconnects can never hand a new
worker the commands of the old one. On one host that is a Unix socket in a directory that only its
owner may enter. Whatever arrives and is no message is dropped and counted.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zmq

from specpipe.codec import MAX_MESSAGE_BYTES, decode, encode
from specpipe.errors import ProtocolError, SpecpipeError
from specpipe.messages import Message, Role

FOLDER_PREFIX = "specpipe-"
"""How the names of the folders of sockets begin, in the temporary folder."""

_HIGH_WATER_MARK = 10_000
_LONGEST_PATH = 107  # sockaddr_un, less the final zero


@contextmanager
def socket_directory() -> Iterator[Path]:
    """A fresh directory for sockets, mode 0700, removed at the end.

    Raises:
        SpecpipeError: when the paths would be too long for Unix sockets.
    """
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
    return f"ipc://{directory}/hub"


def worker_address(directory: Path, role: Role, incarnation: int) -> str:
    """Where the hub listens to one incarnation of a worker."""
    return f"ipc://{directory}/{role}-{incarnation}"


class Channel:
    """One end of a connection. Not thread-safe: it belongs to the thread that uses it."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self.malformed = 0

    @classmethod
    def bind(cls, address: str) -> "Channel":
        """The coordinator's end of a fresh endpoint, such as `ipc:///run/x/target-1`."""
        channel = cls(_pair())
        channel._socket.bind(address)
        return channel

    @classmethod
    def connect(cls, address: str) -> "Channel":
        """The worker's end."""
        channel = cls(_pair())
        channel._socket.connect(address)
        return channel

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """For a poller."""
        return self._socket

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

        None waits without end. The list is empty when the time is over.
        """
        return [message for message, _ in self.receive_sized(timeout_s)]

    def receive_sized(self, timeout_s: float | None = 0.0) -> list[tuple[Message, int]]:
        """As `receive`, each message with its bytes on the wire."""
        messages: list[tuple[Message, int]] = []
        if self._socket.poll(None if timeout_s is None else int(timeout_s * 1000)):
            while True:
                try:
                    data = self._socket.recv(zmq.NOBLOCK)
                    messages.append((decode(data), len(data)))
                except ProtocolError:
                    self.malformed += 1
                except zmq.Again:
                    break
        return messages

    def close(self, linger_s: float = 0.0) -> None:
        """Close; what is not delivered within `linger_s` is dropped."""
        self._socket.close(linger=int(linger_s * 1000))


def _pair() -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
    socket.linger = 0
    socket.sndhwm = socket.rcvhwm = _HIGH_WATER_MARK
    socket.maxmsgsize = MAX_MESSAGE_BYTES
    return socket
