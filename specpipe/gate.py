"""Who may connect over TCP: fresh keys for each endpoint, and a gate that lets one worker in.

CURVE encrypts, and lets in whoever knows the hub's public key. So ZeroMQ asks about each client, by
its authentication protocol (ZAP, RFC 27), and the gate knows one key for each endpoint. Unix
sockets need none of this: nobody else can enter their folder.
"""

from dataclasses import dataclass, field

import zmq
from zmq.utils import z85

_HANDLER = "inproc://zeromq.zap.01"  # where ZeroMQ asks; one for each process
_VERSION = b"1.0"
_ADMITTED, _REFUSED = b"200", b"400"


@dataclass(frozen=True, slots=True)
class HubKeys:
    """What the hub needs: its own secret key, and the public key of the only worker to admit."""

    secret: bytes = field(repr=False)
    admitted: bytes


@dataclass(frozen=True, slots=True)
class WorkerKeys:
    """What a worker connects with: the hub's public key, and its own pair."""

    hub: bytes
    public: bytes
    secret: bytes = field(repr=False)


def fresh_keys() -> tuple[HubKeys, WorkerKeys]:
    """Keys for one incarnation of a worker."""
    hub_public, hub_secret = zmq.curve_keypair()
    public, secret = zmq.curve_keypair()
    return HubKeys(hub_secret, public), WorkerKeys(hub_public, public, secret)


class Gate:
    """Answers ZeroMQ's questions; the process's only one, and polled like any other socket."""

    def __init__(self) -> None:
        self._admitted: dict[bytes, bytes] = {}
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REP)
        socket.linger = 0
        socket.bind(_HANDLER)
        self.socket = socket

    def admit(self, endpoint: str, key: bytes) -> None:
        """From now on, endpoints of this name are for the client with this public key alone."""
        self._admitted[endpoint.encode()] = key

    def answer(self) -> None:
        """Answer all questions that have come."""
        while self.socket.poll(0):
            status, request = _REFUSED, b""
            match self.socket.recv_multipart():
                case [_, request, endpoint, _, _, b"CURVE", key]:
                    if z85.encode(key) == self._admitted.get(endpoint):
                        status = _ADMITTED
                case [_, request, *_]:
                    pass
            self.socket.send_multipart([_VERSION, request, status, b"", b"", b""])

    def close(self) -> None:
        """Answer no more: whoever asks is then refused."""
        self.socket.unbind(_HANDLER)
        self.socket.close()
