"""Sockets: private, bounded, and deaf to what is no message."""

import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from specpipe.channel import Channel, socket_directory, worker_address
from specpipe.codec import MAX_MESSAGE_BYTES, encode
from specpipe.errors import SpecpipeError
from specpipe.worker_messages import Close, Progress


@pytest.fixture
def address() -> Iterator[str]:
    with socket_directory() as directory:
        yield worker_address(directory, "draft", 1)


def test_nobody_else_may_enter_the_folder_and_it_goes() -> None:
    """The sockets in it have no password: the folder's mode is their only guard."""
    with socket_directory() as directory:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        (directory / "left-over").touch()
    assert not directory.exists()


def test_a_folder_too_deep_for_sockets_is_refused_and_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would cut the path of a socket at 107 characters."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(SpecpipeError, match="TMPDIR"), socket_directory():
        pass
    assert not list(deep.iterdir())


def test_messages_arrive_whole_in_order_and_both_ways(address: str) -> None:
    hub, worker = Channel.bind(address), Channel.connect(address)
    sent = [Progress(1, 1, n, n, 0.0, 0.0) for n in range(100)]
    assert all(worker.send(message) for message in sent)
    got: list[object] = []
    while len(got) < len(sent):
        got += hub.receive(5.0)
    assert got == sent
    assert hub.send(Close(7))
    assert worker.receive(5.0) == [Close(7)]
    hub.close()
    worker.close()


def test_what_is_no_message_is_dropped_and_counted_and_the_rest_arrives(address: str) -> None:
    """One broken frame must not take the loop, or the messages behind it, down."""
    hub = Channel.bind(address)
    stranger: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
    stranger.connect(address)
    for frame in (b"", b"\x80", b"\xc1" * 50, encode(Close(1))[:-1], encode(Close(3))):
        stranger.send(frame)
    got: list[object] = []
    while not got:
        got += hub.receive(5.0)
    assert got == [Close(3)]
    assert hub.malformed == 4
    hub.close()
    stranger.close(linger=0)


def test_a_message_beyond_the_limit_never_gets_into_memory(address: str) -> None:
    hub = Channel.bind(address)
    stranger: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
    stranger.connect(address)
    stranger.send(bytes(MAX_MESSAGE_BYTES + 1))
    assert hub.receive(0.5) == []
    hub.close()
    stranger.close(linger=0)


def test_sending_to_nobody_says_so_instead_of_waiting(address: str) -> None:
    """A dead worker must not block the hub, on which the other one depends."""
    hub = Channel.bind(address)
    assert not hub.send(Close(1))
    hub.close()
