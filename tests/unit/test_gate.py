"""TCP between hosts: one worker gets in, strangers don't, and a lost connection is noticed."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import pytest
import zmq

from specpipe.channel import Channel, network_address
from specpipe.errors import WorkerError
from specpipe.gate import Gate, fresh_keys
from specpipe.messages import Attach, Message
from specpipe.worker_messages import Close, Opened, Progress, Shutdown

HERE = network_address("127.0.0.1")
WITHIN_S = 10.0

T = TypeVar("T")


class Hub:
    """The hub's end of one endpoint, and the gate that it polls."""

    def __init__(self) -> None:
        self.gate = Gate()
        keys, self.keys = fresh_keys()
        self.gate.admit("draft", keys.admitted)
        self.channel = Channel.bind(HERE, keys.secret, "draft")

    def hears(self, seconds: float = WITHIN_S) -> list[Message]:
        """What comes first within the time."""
        return self.until(lambda: self.channel.receive(0.01), seconds) or []

    def until(self, done: Callable[[], T], seconds: float = WITHIN_S) -> T:
        """Answer for the gate until something is so, or the time is over."""
        deadline = time.monotonic() + seconds
        while not (found := done()) and time.monotonic() < deadline:
            self.gate.answer()
        return found


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.channel.close()
    hub.gate.close()


def is_refused(worker: Channel) -> bool:
    try:
        worker.receive(0.01)
    except WorkerError:
        return True
    return False


def plain_client(hub: Hub) -> "zmq.Socket[bytes]":
    client: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
    client.connect(hub.channel.address)
    return client


def test_the_worker_with_the_key_is_heard_and_answered(hub: Hub) -> None:
    worker = Channel.connect(hub.channel.address, hub.keys)
    assert worker.send(Opened(1, 2))
    assert hub.hears() == [Opened(1, 2)]
    assert hub.channel.send(Close(3))
    assert hub.until(lambda: worker.receive(0.01)) == [Close(3)]
    worker.close()


def test_a_stranger_who_knows_the_hubs_key_stays_out_and_keeps_nobody_out(hub: Hub) -> None:
    """CURVE alone admits any client that knows the public key of the server."""
    own = fresh_keys()[1]
    stranger = Channel.connect(hub.channel.address, replace(own, hub=hub.keys.hub))
    stranger.send(Opened(6, 6))
    assert hub.until(lambda: is_refused(stranger)), "nobody told it that it was refused"
    stranger.close()
    worker = Channel.connect(hub.channel.address, hub.keys)
    worker.send(Opened(1, 1))
    assert hub.hears() == [Opened(1, 1)]
    worker.close()


def test_a_client_without_encryption_stays_out_and_keeps_nobody_out(hub: Hub) -> None:
    """Even one that stays connected: a PAIR socket has but one peer."""
    stranger, raw = plain_client(hub), socket.create_connection(("127.0.0.1", port_of(hub)))
    with suppress(
        zmq.Again
    ):  # it may have been thrown out already; waiting, it would wait for ever
        stranger.send(b"anything", zmq.NOBLOCK)
    assert hub.hears(0.5) == []
    worker = Channel.connect(hub.channel.address, hub.keys)
    worker.send(Opened(1, 1))
    assert hub.hears() == [Opened(1, 1)]
    assert hub.channel.malformed == 0
    stranger.close(linger=0)
    raw.close()
    worker.close()


def port_of(hub: Hub) -> int:
    return int(hub.channel.address.rpartition(":")[2])


def test_the_key_of_the_last_incarnation_is_no_key_for_the_next(hub: Hub) -> None:
    """What a worker that was given up still sends must not reach its successor's place."""
    keys, own = fresh_keys()
    hub.gate.admit("draft", keys.admitted)
    late = Channel.connect(hub.channel.address, hub.keys)
    assert hub.until(lambda: is_refused(late))
    late.close()
    assert own.public == keys.admitted


def test_without_a_gate_nobody_gets_in() -> None:
    """ZeroMQ's own default is to admit everybody whom nobody can vouch for."""
    keys, own = fresh_keys()
    channel = Channel.bind(HERE, keys.secret, "draft")
    worker = Channel.connect(channel.address, own)
    worker.send(Opened(1, 1))
    assert channel.receive(0.5) == []
    worker.close()
    channel.close()


def test_the_network_is_never_opened_without_a_key() -> None:
    with pytest.raises(ValueError, match="without a key"):
        Channel.bind(HERE)


def test_a_worker_hears_what_was_said_and_then_that_the_connection_is_lost(hub: Hub) -> None:
    """It would wait for ever, on a core of its own, for a hub that is gone."""
    worker = Channel.connect(hub.channel.address, hub.keys)
    worker.send(Opened(1, 1))
    assert hub.hears()
    hub.channel.send(Shutdown())
    hub.channel.close(linger_s=1.0)
    # Both have come before it looks: the message goes first.
    assert hub.until(lambda: worker._loss is not None and worker._loss.poll(10))
    assert worker.receive(WITHIN_S) == [Shutdown()]
    with pytest.raises(WorkerError, match=r"coordinator at tcp://127.0.0.1:\d+ was lost"):
        worker.receive(WITHIN_S)
    worker.close()


def test_a_hub_that_is_not_there_is_an_error_too() -> None:
    keys = fresh_keys()[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        worker = Channel.connect(f"tcp://127.0.0.1:{free.getsockname()[1]}", keys)
        with pytest.raises(WorkerError, match="was lost"):
            worker.receive(WITHIN_S)
        worker.close()


def test_secrets_are_not_shown() -> None:
    """A trace or a log would hand them on."""
    keys, own = fresh_keys()
    assert keys.secret.decode() not in repr(keys)
    assert own.secret.decode() not in repr(own)
    attach = Attach("draft", 1, HERE, keys.secret, keys.admitted)
    assert keys.secret.decode() not in repr(attach)


def test_times_of_another_host_become_those_of_the_hub(hub: Hub) -> None:
    """Overlap and handover compare both clocks, which began when their hosts were switched on."""

    def ahead() -> float:
        return time.monotonic() + 5e6

    worker = Channel.connect(hub.channel.address, hub.keys, ahead)
    worker.send(Opened(1, 1))
    assert hub.hears() == [Opened(1, 1)], "a worker's first message has no times"
    # Whatever the hub says next comes after its question.
    hub.channel.send(Close(1))
    assert hub.until(lambda: worker.receive(0.01)) == [Close(1)]
    begun = ahead()
    worker.send(Progress(1, 1, 1, 1, begun, begun + 1.0))
    (progress,) = hub.hears()
    assert isinstance(progress, Progress)
    assert abs(progress.begun - (begun - 5e6)) < 0.5
    assert abs(progress.ended - progress.begun - 1.0) < 1e-6
    worker.close()
