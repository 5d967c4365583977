"""Logs: one request's way through all parts, in lines that a machine can read."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from specpipe import logs
from specpipe.channel import Channel, socket_directory, worker_address
from specpipe.errors import UserError
from specpipe.messages import Finish, Gone, Message
from specpipe.metrics import RequestMetrics
from specpipe.pulse import Pulse
from specpipe.story import tell
from specpipe.worker_messages import Close, Closed, Extend, Opened, Said, Shutdown, Verdict
from specpipe.workers.loop import run_target
from specpipe.workers.target import Target
from tests.toys import TargetLaw, ToyModel, sampling


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Loggers belong to the process."""
    kept = [logging.getLogger(name) for name in ("specpipe", "specpipe.workers.target")]
    before = [(log.handlers, log.level, log.propagate) for log in kept]
    yield
    for log, state in zip(kept, before, strict=True):
        log.handlers, log.level, log.propagate = state


@pytest.fixture
def folder() -> Iterator[Path]:
    with socket_directory() as directory:
        yield directory


def test_json_lines_name_pipeline_part_and_request(capsys: pytest.CaptureFixture[str]) -> None:
    """A line without the request's number can't be followed; one with a line break is two."""
    logs.set_up(logs.LogConfig("info", "json"), "coordinator", "specpipe-x")
    log = logging.getLogger("specpipe.hub")
    tell(log, Finish(7, "error", "first\nsecond", RequestMetrics()))
    tell(log, Verdict(7, 1, 1, 2, 3, 0.0, 0.0, 0.0))  # of no interest at this level
    logs.write_said(Said("draft", logging.INFO, "has read it", 7))
    tell(log, Gone("draft", "the draft cannot come back"))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(each["part"], each["level"], each.get("request")) for each in lines] == [
        ("coordinator", "info", 7),
        ("draft", "info", 7),
        ("coordinator", "warning", None),
    ]
    assert {each["pipeline"] for each in lines} == {"specpipe-x"}
    assert "first\nsecond" in lines[0]["text"]
    assert lines[0]["time"].endswith("Z")


def test_text_lines_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(logs.LogConfig("debug"), "program")
    tell(logging.getLogger("specpipe.workers.draft"), Opened(3, 1))
    logging.getLogger("specpipe.actors").warning("the %s was lost", "draft")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(" info draft: request 3: has read it")
    assert second.endswith(" warning program: the draft was lost")


@pytest.mark.parametrize(("level", "lines"), [("debug", 3), ("info", 2), ("warning", 0)])
def test_a_workers_lines_reach_the_hub(folder: Path, level: logs.LogLevel, lines: int) -> None:
    """They are in a file of Ray's only, and the story has a gap; or they are sent unasked."""
    logs.set_up(logs.LogConfig(level), "target")
    address = worker_address(folder, "target", 1)
    hub, channel = Channel.bind(address), Channel.connect(address)
    logs.send_to_hub("target", channel)
    channel.send(Closed("target", 4, 1))
    hub.receive(5.0)  # now they are connected
    for message in (Extend(5, 1, 0, (1, 2), 2, sampling()), Close(5), Shutdown()):
        assert hub.send(message)
    run_target(Target(ToyModel(TargetLaw(1)), 1), channel, Pulse())
    channel.send(Closed("target", 4, 1))
    received: list[Message] = []
    while not received or received[-1] != Closed("target", 4, 1):
        received += hub.receive(5.0)
    said = [each for each in received if isinstance(each, Said)]
    assert len(said) == lines
    assert {(each.role, each.request) for each in said} <= {("target", 5)}
    assert len(received) - len(said) == 3
    hub.close()
    channel.close()


@pytest.mark.parametrize("wrong", [{"level": "loud"}, {"format": "xml"}])
def test_what_logs_cannot_be_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError, match="choose one of"):
        logs.LogConfig(**wrong)  # type: ignore[arg-type]
