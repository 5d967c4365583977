"""Looking into pipelines from outside: all that run are seen, and nothing harms them."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from specpipe import watching
from specpipe.channel import socket_directory
from specpipe.figures import Counts, Figures, Recent, Times
from specpipe.hub_client import HubClient
from specpipe.leftovers import FOLDER_PREFIX
from specpipe.messages import UsePolicy
from specpipe.watching import Window, running_pipelines

SETTINGS = {
    **{"policy": "take_all", "lookahead": 8, "prefill_chunk": 16, "wait_timeout_s": 1.0},
    "about": {"model": "toy"},
}


@pytest.fixture(autouse=True)
def nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may run pipelines on this machine."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def folder() -> Iterator[Path]:
    with socket_directory() as directory:
        yield directory


def figures_at(now: float) -> Figures:
    return Figures("p", 1, (), now, 0, 0, Counts(), Times(), Recent(), (), ())


def test_a_running_pipeline_is_seen_and_a_dead_one_is_not(folder: Path, tmp_path: Path) -> None:
    """What a killed run left behind would be waited for at each look."""
    dead = tmp_path / f"{FOLDER_PREFIX}dead"
    dead.mkdir()
    Window(dead, figures_at).close()  # zmq leaves the socket's file
    (tmp_path / f"{FOLDER_PREFIX}empty").mkdir()
    (tmp_path / f"{FOLDER_PREFIX}file").touch()
    hub = HubClient(folder, (), SETTINGS)
    heard: list[Figures] = []
    hub.start(lambda ready: None, heard.append)
    hub.post(UsePolicy("serial:2"))
    deadline = time.monotonic() + 20
    while not (found := running_pipelines(0.3)) or found[0].setting("policy") != "serial:2":
        assert time.monotonic() < deadline
    assert [(each.pipeline, each.setting("model")) for each in found] == [(folder.name, "toy")]
    hub.close()
    assert heard[-1].seconds > found[0].seconds, "the last word is told, at the end"
    assert running_pipelines(0.3) == []


def test_another_users_pipeline_is_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder in /tmp may be anybody's, and what answers there too."""
    window = Window(folder, figures_at)
    monkeypatch.setattr("os.getuid", lambda: 1234567)
    assert running_pipelines(0.3) == []
    assert not window.socket.poll(0), "nobody asked"
    window.close()


def ask(folder: Path, question: bytes) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
    socket.linger = 0
    socket.connect(f"ipc://{folder}/watch")
    socket.send(question)
    return socket


def test_who_asks_without_end_costs_little_and_who_says_much_is_cut_off(folder: Path) -> None:
    """The window is part of the loop that the target waits for."""
    made = []

    def figures(now: float) -> Figures:
        made.append(now)
        return figures_at(now)

    window = Window(folder, figures)
    asking = [ask(folder, b"") for _ in range(40)]
    talking = ask(folder, b"x" * 100_000)
    time.sleep(0.2)
    answered = 0
    for _ in range(20):
        before = sum(bool(each.poll(0)) for each in asking)
        window.answer(1.0)
        time.sleep(0.01)
        answered = sum(bool(each.poll(0)) for each in asking)
        assert answered - before <= 8, "a burst is served in turns"
    assert answered == 40
    assert len(made) == 1, "the same answer will do for a while"
    assert not talking.poll(0)
    window.answer(2.0)
    for socket in (*asking, talking):
        socket.close()
    window.close()


def test_an_answer_that_is_none_is_passed_over(folder: Path) -> None:
    """A pipeline of another version must not end the look at the others."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REP)
    socket.linger = 0
    socket.bind(f"ipc://{folder}/watch")
    question = watching._ask(folder)
    socket.poll(1000)
    socket.recv()
    socket.send(b"\x93\x05")
    question.poll(1000)
    assert watching._read(question) is None
    question.close()
    socket.close()
