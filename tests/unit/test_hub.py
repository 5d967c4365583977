"""The hub's process: it outlives nobody, and nobody waits for it in vain."""

import json
import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from specpipe.channel import Channel, network_address, socket_directory, worker_address
from specpipe.codec import encode
from specpipe.errors import WorkerError
from specpipe.gate import fresh_keys
from specpipe.hub_client import HubClient
from specpipe.messages import Attach, Finish, Message, Submit, Tokens, UsePolicy
from specpipe.worker_messages import (
    Close,
    Commit,
    Exhausted,
    Extend,
    Open,
    Opened,
    Proceed,
    Ready,
    Shutdown,
    Verdict,
)
from tests.toys import sampling

SETTINGS = {"policy": "take_all", "lookahead": 8, "prefill_chunk": 16, "wait_timeout_s": 1.0}


@pytest.fixture
def folder() -> Iterator[Path]:
    with socket_directory() as directory:
        yield directory


def hubs(directory: Path) -> list[psutil.Process]:
    """The hub of this folder, if it runs."""
    found = psutil.process_iter(["cmdline"])
    return [each for each in found if str(directory) in " ".join(each.info["cmdline"] or [])]


def receive(channel: Channel) -> Message:
    messages = channel.receive(10.0)
    assert len(messages) == 1, messages
    return messages[0]


def test_a_request_goes_to_the_worker_and_its_tokens_come_back(
    folder: Path, tmp_path: Path
) -> None:
    record = tmp_path / "run.jsonl"
    hub = HubClient(folder, (), SETTINGS | {"record": str(record)})
    reported: queue.SimpleQueue[Ready] = queue.SimpleQueue()
    updates: queue.SimpleQueue[Tokens | Finish] = queue.SimpleQueue()
    hub.start(reported.put)
    hub.post(Attach("target", 1, worker_address(folder, "target", 1)))
    target = Channel.connect(worker_address(folder, "target", 1))
    ready = Ready("target", 1, 1, 64, 5, "cpu", (0,))
    target.send(ready)
    assert reported.get(timeout=10) == ready
    hub.post(UsePolicy("serial:2"))  # it goes on all the same
    hub.submit(Submit(1, (1, 2, 3), 2, sampling()), updates.put)
    exchanged: list[Message] = []
    asked = target.receive(10.0)  # both passes that two tokens take
    if len(asked) == 1:
        asked += target.receive(10.0)
    assert [type(message) for message in asked] == [Extend, Proceed]
    for number, (message, token) in enumerate(zip(asked, (4, 2), strict=True)):
        assert isinstance(message, Extend | Proceed)
        verdict = Verdict(1, 1, message.extend_id, 0, token, 0.0, 1.0, 0.0)
        target.send(verdict)
        exchanged += [message, verdict]
        assert updates.get(timeout=10) == Tokens(
            1, 3 + number, (token,), ("bonus",), contradicts=False
        )
    finish = updates.get(timeout=10)
    assert isinstance(finish, Finish)
    assert (finish.reason, finish.metrics.completion_tokens) == ("length", 2)
    assert receive(target) == Close(1)
    exchanged.append(Close(1))
    assert finish.metrics.messages == len(exchanged)
    assert finish.metrics.message_bytes == sum(len(encode(message)) for message in exchanged)
    hub.close()
    (line,) = map(json.loads, record.read_text().splitlines())  # the first read the prompt, too
    assert (line["type"], line["rows"], line["alone"]) == ("pass", 1, True)
    target.close()


def test_the_user_is_told_once_the_draft_has_said_its_word(folder: Path) -> None:
    """A program that wakes too early takes the core on which the draft is to answer."""
    hub = HubClient(folder, (), SETTINGS | {"wait_timeout_s": 30.0})
    reported: queue.SimpleQueue[Ready] = queue.SimpleQueue()
    updates: queue.SimpleQueue[Tokens | Finish] = queue.SimpleQueue()
    hub.start(reported.put)
    workers = []
    for role, sources in (("draft", ("ngram",)), ("target", ())):
        hub.post(Attach(role, 1, worker_address(folder, role, 1)))
        workers.append(Channel.connect(worker_address(folder, role, 1)))
        workers[-1].send(Ready(role, 1, 1, 64, 5, "cpu", (0,), sources))
        reported.get(timeout=10)
    draft, target = workers
    hub.submit(Submit(1, (1, 2, 3), 3, sampling()), updates.put)
    opening, extend = receive(draft), receive(target)
    assert isinstance(opening, Open)
    assert isinstance(extend, Extend)
    draft.send(Opened(1, 1))
    time.sleep(0.2)  # until it is there
    target.send(Verdict(1, 1, extend.extend_id, 0, 4, 0.0, 1.0, 0.0))
    commit = receive(draft)
    assert isinstance(commit, Commit)
    with pytest.raises(queue.Empty):
        updates.get(timeout=0.3)
    draft.send(Exhausted(1, 1, commit.last_serial, "nothing"))
    assert isinstance(receive(target), Extend)
    assert updates.get(timeout=10) == Tokens(1, 3, (4,), ("bonus",), contradicts=False)
    hub.close()
    for worker in workers:
        worker.close()


def until_lost(channel: Channel) -> list[Message]:
    """What a worker hears before its connection ends."""
    heard: list[Message] = []
    while True:
        try:
            heard += channel.receive(10.0)
        except WorkerError:
            return heard


def test_over_tcp_each_incarnation_has_a_port_and_a_key_of_its_own(folder: Path) -> None:
    """A port chosen beforehand may be taken; a key that stays good lets a dead worker speak."""
    hub = HubClient(folder, (), SETTINGS)
    reported: queue.SimpleQueue[Ready] = queue.SimpleQueue()
    hub.start(reported.put)
    workers, keys_of = [], {}
    for incarnation in (1, 2):
        ours, keys_of[incarnation] = fresh_keys()
        attach = Attach(
            "target", incarnation, network_address("127.0.0.1"), ours.secret, ours.admitted
        )
        address = hub.attach(attach).result(10)
        workers.append(Channel.connect(address, keys_of[incarnation]))
        ready = Ready("target", incarnation, 1, 64, 5, "cpu", (0,))
        workers[-1].send(ready)
        assert reported.get(timeout=10) == ready
    late = Channel.connect(address, keys_of[1])
    assert until_lost(late) == until_lost(workers[0]) == []
    hub.close()
    assert until_lost(workers[1]) == [Shutdown()]
    for channel in (late, *workers):
        channel.close()


def test_an_address_that_is_none_of_ours_is_told_and_the_hub_lives_on(folder: Path) -> None:
    """Ray may know this machine by an address that its own interfaces don't have."""
    hub = HubClient(folder, (), SETTINGS)
    hub.start(lambda ready: None)
    keys, _ = fresh_keys()
    attach = Attach("draft", 1, network_address("192.0.2.1"), keys.secret, keys.admitted)
    with pytest.raises(WorkerError, match=r"cannot listen at tcp://192.0.2.1:\*: Cannot assign"):
        hub.attach(attach).result(10)
    address = worker_address(folder, "draft", 2)
    assert hub.attach(Attach("draft", 2, address)).result(10) == address
    hub.close()


def test_requests_end_with_an_error_when_the_hub_dies_and_later_ones_at_once(folder: Path) -> None:
    """Their readers would wait for ever."""
    hub = HubClient(folder, (), SETTINGS)
    updates: queue.SimpleQueue[Tokens | Finish] = queue.SimpleQueue()
    hub.start(lambda ready: None)
    hub.submit(Submit(1, (1, 2), 4, sampling()), updates.put)
    hub.kill()
    finish = updates.get(timeout=10)
    assert isinstance(finish, Finish)
    assert (finish.request, finish.reason) == (1, "error")
    assert hub.ended
    hub.submit(Submit(2, (1, 2), 4, sampling()), updates.put)
    assert updates.get(timeout=10).request == 2
    with pytest.raises(WorkerError, match="ended unexpectedly"):
        hub.attach(Attach("draft", 1, worker_address(folder, "draft", 1))).result(10)
    hub.close()


def test_the_hub_ends_with_its_parent_and_removes_the_sockets() -> None:
    """After SIGKILL nobody else is left who could."""
    program = (
        "import sys, time; from specpipe.channel import socket_directory as folder\n"
        "from specpipe.hub_client import HubClient\n"
        "with folder() as directory:\n"
        f"    hub = HubClient(directory, (), {SETTINGS!r}); hub.start(lambda ready: None)\n"
        "    print(directory, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    directory = Path(parent.stdout.readline().strip())
    deadline = time.monotonic() + 20
    while not (directory / "hub").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (hub,) = hubs(directory)
    assert hub.ppid() != parent.pid, "Ray would kill it before it could clean up"
    parent.kill()
    parent.communicate()
    while hub.is_running() or directory.exists():
        assert time.monotonic() < deadline, "the hub outlived its parent"
        time.sleep(0.05)
