"""How other processes of the same user see a running pipeline: `specpipe top`, `specpipe status`.

The hub answers whoever asks at a second socket in the pipeline's folder, which only its owner may
enter. Nothing can be changed there: a question has no content, and each answer is the figures.
"""

import time
from collections.abc import Callable
from pathlib import Path

import zmq

from specpipe.codec import MAX_MESSAGE_BYTES, decode, encode
from specpipe.errors import ProtocolError
from specpipe.figures import Figures
from specpipe.leftovers import pipeline_folders
from specpipe.messages import Stats

_SOCKET = "watch"
_FRESH_S = 0.1  # so long the same answer will do: who asks without end costs the hub little
_LONGEST_QUESTION = 64  # bytes; the handshake has some, a question none
_MOST_WAITING = 16
_MOST_ANSWERED = 4  # at once, before the hub turns to its work again


def _address(folder: Path) -> str:
    return f"ipc://{folder / _SOCKET}"


class Window:
    """The hub's side.

    Args:
        folder: of the pipeline's sockets.
        figures: makes an answer, given the moment.
    """

    def __init__(self, folder: Path, figures: Callable[[float], Figures]) -> None:
        self._figures = figures
        self._answer, self._made = b"", -_FRESH_S
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REP)
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = _MOST_WAITING
        socket.maxmsgsize = _LONGEST_QUESTION  # who sends more is cut off
        socket.bind(_address(folder))
        self.socket = socket

    def answer(self, now: float) -> None:
        """Answer those who ask at this moment."""
        for _ in range(_MOST_ANSWERED):
            try:
                self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if now - self._made >= _FRESH_S:
                self._answer, self._made = encode(Stats(self._figures(now))), now
            self.socket.send(self._answer)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def running_pipelines(timeout_s: float = 1.0) -> list[Figures]:
    """The figures of all pipelines of this user on this machine, by name.

    Folders that were left behind, whose hub is gone, are passed over; so is what does not answer in
    time, or speaks another version.
    """
    folders = [folder for folder in pipeline_folders() if (folder / _SOCKET).is_socket()]
    waiting = {_ask(folder) for folder in folders}
    poller = zmq.Poller()
    for socket in waiting:
        poller.register(socket, zmq.POLLIN)
    deadline, found = time.monotonic() + timeout_s, []
    while waiting and (left := deadline - time.monotonic()) > 0:
        for socket, _ in poller.poll(int(left * 1000) + 1):
            assert isinstance(socket, zmq.Socket)
            if figures := _read(socket):
                found.append(figures)
            poller.unregister(socket)
            socket.close()
            waiting.remove(socket)
    for socket in waiting:
        socket.close()
    return sorted(found, key=lambda figures: figures.pipeline)


def _ask(folder: Path) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
    socket.linger = 0
    socket.maxmsgsize = MAX_MESSAGE_BYTES
    socket.connect(_address(folder))
    socket.send(b"")
    return socket


def _read(socket: zmq.Socket[bytes]) -> Figures | None:
    try:
        message = decode(socket.recv(zmq.NOBLOCK))
    except (ProtocolError, zmq.ZMQError):
        return None
    return message.figures if isinstance(message, Stats) else None
