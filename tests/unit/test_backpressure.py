"""Full queues: whoever is too slow holds others up, and nothing is lost."""

import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
import zmq

from specpipe import channel as channel_module
from specpipe import hub_client
from specpipe.channel import Channel, socket_directory, worker_address
from specpipe.coordinator import Coordinator
from specpipe.dispatch import make_policy
from specpipe.hub import Hub
from specpipe.hub_client import HubClient
from specpipe.messages import Attach, Attached, Finish, Lost, Message, Submit, Tokens, Vocabulary
from specpipe.reporting import Reporting
from specpipe.statistics import Statistics
from specpipe.watching import Window
from specpipe.worker_messages import Extend, Proceed, Ready, Verdict
from tests.toys import TOKEN_BYTES, sampling

SETTINGS = {"policy": "take_all", "lookahead": 8, "prefill_chunk": 16, "wait_timeout_s": 1.0}
Update = Tokens | Finish
M = TypeVar("M")


@pytest.fixture
def folder() -> Iterator[Path]:
    with socket_directory() as directory:
        yield directory


def one_message_channel(address: str, *, bind: bool) -> Channel:
    """An end that holds one message, where others hold thousands."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
    socket.linger = 0
    socket.sndhwm = socket.rcvhwm = 1
    (socket.bind if bind else socket.connect)(address)
    return Channel(socket)


@pytest.fixture
def user(folder: Path) -> Iterator[Channel]:
    """The user's end of a hub in a thread."""
    mine, other = os.pipe()
    bound = one_message_channel("inproc://user", bind=True)
    policy = make_policy("take_all")
    coordinator = Coordinator(policy, prefill_chunk=10**6)
    statistics = Statistics(coordinator, 0.0, pipeline="test", pid=1, settings={})
    reporting = Reporting(statistics, bound, Window(folder, statistics.figures))
    hub = Hub(coordinator, {"take_all": policy}, bound, mine, reporting)
    thread = threading.Thread(target=hub.run)
    thread.start()
    channel = one_message_channel("inproc://user", bind=False)
    yield channel
    os.close(other)  # as when the program has ended
    thread.join(10)
    assert not thread.is_alive(), "the hub waits for a program that is gone"
    os.close(mine)
    channel.close()


def until(user: Channel, kind: type[M]) -> M:
    """The next message of a kind, after others."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for message in user.receive(0.1):
            if isinstance(message, kind):
                return message
    raise TimeoutError(kind.__name__)


def say(user: Channel, message: Message) -> None:
    """Tell the hub, once it takes it."""
    while not user.send(message):
        user.socket.poll(10, zmq.POLLOUT)


def attach_target(user: Channel, folder: Path, slots: int) -> Channel:
    """A target whose work is done by the test."""
    say(user, Vocabulary(TOKEN_BYTES))
    say(user, Attach("target", 1, worker_address(folder, "target", 1)))
    attached = until(user, Attached)
    target = Channel.connect(attached.address)
    target.send(Ready("target", 1, slots, 100_000, 5, "cpu", (0,)))
    until(user, Ready)
    return target


next_place: dict[int, int] = {}  # to be judged, by request


def answer(target: Channel, timeout_s: float) -> int:
    """Answer what the hub asks; returns how much that was."""
    messages = target.receive(timeout_s)
    asked = [message for message in messages if isinstance(message, Extend | Proceed)]
    for message in asked:
        place = message.verify_from if isinstance(message, Extend) else next_place[message.request]
        next_place[message.request], token = place + 1, place % len(TOKEN_BYTES)
        target.send(Verdict(message.request, 1, message.extend_id, 0, token, 0.0, 0.0, 0.0))
    return len(asked)


def test_a_program_that_reads_nothing_for_a_while_misses_nothing(
    user: Channel, folder: Path
) -> None:
    """What a full socket did not take was gone: a hole in the text, or an answer without an end."""
    target, length = attach_target(user, folder, 1), 40
    say(user, Submit(1, (1, 2, 3), length, sampling()))
    answered = 0
    while count := answer(target, 0.3):
        answered += count
    assert answered < length, "nothing was held up, so nothing is shown"
    got: list[Message] = []
    while not any(isinstance(message, Finish) for message in got):
        got += user.receive(0.01)
        answer(target, 0.0)
    tokens = [token for message in got if isinstance(message, Tokens) for token in message.tokens]
    assert tokens == [(3 + place) % len(TOKEN_BYTES) for place in range(length)]
    target.close()


def test_a_worker_that_takes_no_more_messages_is_given_up(
    user: Channel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was counted as lost, but nobody ended it: work went neither to it nor to another."""
    monkeypatch.setattr(channel_module, "_HIGH_WATER_MARK", 1)
    target = attach_target(user, folder, 100)
    for request in range(100):  # more than any buffer of the system takes
        say(user, Submit(request, (1,) * 9_999, 1, sampling()))
    assert answer(target, 10.0) <= 2, "after a pass, and perhaps the next, one is for all others"
    assert until(user, Lost) == Lost("target", 1, "it takes no more messages")
    target.close()


# -- the client


def client(folder: Path, heard: "queue.SimpleQueue[Ready | Lost]", most_waiting: int) -> HubClient:
    hub = HubClient(folder, (), SETTINGS, most_waiting=most_waiting)
    hub.start(heard.put)
    return hub


def submit(hub: HubClient, request: int, updates: "queue.SimpleQueue[Update]") -> None:
    hub.submit(Submit(request, (1, 2), 4, sampling()), updates.put)


def test_whoever_submits_more_than_can_be_answered_waits(folder: Path) -> None:
    """A million prompts would be held in memory, in this process and in the hub's."""
    updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
    hub = client(folder, queue.SimpleQueue(), 2)
    submit(hub, 1, updates)
    submit(hub, 2, updates)
    third = threading.Thread(target=submit, args=(hub, 3, updates))
    third.start()
    third.join(0.2)
    assert third.is_alive()
    hub.abort(1)
    third.join(10)
    assert not third.is_alive()
    assert updates.get(timeout=10).request == 1
    hub.close()


def test_a_sink_that_submits_does_not_wait_for_itself(folder: Path) -> None:
    """Sinks run in the thread that would make room."""
    updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
    hub = client(folder, queue.SimpleQueue(), 2)

    def once_more(update: Update) -> None:
        submit(hub, 2, updates)
        submit(hub, 3, updates)
        updates.put(update)

    submit(hub, 4, updates)
    hub.submit(Submit(1, (1, 2), 4, sampling()), once_more)
    hub.abort(1)
    assert updates.get(timeout=10).request == 1
    hub.close()


def test_what_has_not_finished_ends_with_the_pipeline_and_nothing_begins_after_it(
    folder: Path,
) -> None:
    """Another thread would wait for its answer for ever, or write into a file of somebody else."""
    updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
    hub = client(folder, queue.SimpleQueue(), 1)
    submit(hub, 1, updates)
    waits = threading.Thread(target=submit, args=(hub, 2, updates))
    waits.start()
    hub.close()
    waits.join(10)
    hub.abort(1)
    submit(hub, 3, updates)
    ends = [updates.get(timeout=10) for _ in range(3)]
    assert {end.request for end in ends} == {1, 2, 3}
    assert all(isinstance(end, Finish) and "was closed" in end.cause for end in ends)


def test_a_worker_that_says_what_is_no_message_is_given_up(folder: Path) -> None:
    """It may have been a verdict, and the hub would wait for it for ever."""
    heard: queue.SimpleQueue[Ready | Lost] = queue.SimpleQueue()
    hub = client(folder, heard, 1)
    address = hub.attach(Attach("target", 1, worker_address(folder, "target", 1))).result(10)
    target = Channel.connect(address)
    target.send(Ready("target", 1, 1, 64, 5, "cpu", (0,)))
    assert isinstance(heard.get(timeout=10), Ready)
    target.socket.send(b"\x93 no message")
    assert heard.get(timeout=10) == Lost("target", 1, "it said what is no message")
    hub.close()
    target.close()


def in_group(process: psutil.Process, group: int) -> bool:
    """Whether a process is one of a group, and lives."""
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def test_closing_does_not_wait_for_a_hub_that_takes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that hangs would keep its program from ending."""
    monkeypatch.setattr(channel_module, "_HIGH_WATER_MARK", 1)
    monkeypatch.setattr(hub_client, "_END_TIMEOUT_S", 0.5)
    updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
    hub = client(folder, queue.SimpleQueue(), 100)
    hub.attach(Attach("target", 1, worker_address(folder, "target", 1))).result(10)
    group = hub._process.pid
    os.killpg(group, signal.SIGSTOP)
    for request in range(100):
        hub.submit(Submit(request, (1,) * 9_999, 1, sampling()), updates.put)
    begun = time.monotonic()
    hub.close()
    assert time.monotonic() - begun < 20
    while any(in_group(process, group) for process in psutil.process_iter()):
        assert time.monotonic() - begun < 30, "the hub outlived its program"
        time.sleep(0.01)
    assert updates.qsize() == 100
