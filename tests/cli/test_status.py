"""`specpipe status` and `specpipe top`, beside a hub that really runs."""

import json
import os
import subprocess
import time

import pexpect
import pytest

from specpipe.channel import Channel, socket_directory, worker_address
from specpipe.hub_client import HubClient
from specpipe.messages import Attach, Submit
from specpipe.worker_messages import Ready
from tests.programs import SPECPIPE
from tests.toys import sampling

SETTINGS = {
    **{"policy": "take_all", "lookahead": 8, "prefill_chunk": 16, "wait_timeout_s": 1.0},
    "about": {"model": "toy", "draft_model": ""},
}


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """One in which nobody else's pipelines are found."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return os.environ | {"TMPDIR": str(tmp_path), "COLUMNS": "100", "TERM": "xterm"}


@pytest.fixture
def pipeline(environment):
    """The name of one whose target reads for ever."""
    with socket_directory() as folder:
        hub = HubClient(folder, (), SETTINGS)
        hub.start(lambda ready: None)
        hub.post(Attach("target", 1, worker_address(folder, "target", 1)))
        target = Channel.connect(worker_address(folder, "target", 1))
        target.send(Ready("target", 1, 1, 64, 5, "cpu:1", (1,)))
        for request in (1, 2):
            hub.submit(Submit(request, (1, 2, 3), 2, sampling()), lambda update: None)
        assert target.receive(20.0), "the target has work"
        yield folder.name
        hub.close()
        target.close()


def status(environment, *args):
    return subprocess.run(
        [*SPECPIPE, "status", *args], capture_output=True, text=True, env=environment, check=False
    )


def test_status_tells_what_runs(pipeline, environment):
    (found,) = json.loads(status(environment, "--json").stdout)
    assert (found["pipeline"], found["settings"]["model"]) == (pipeline, "toy")
    assert (found["num_requests_running"], found["num_requests_waiting"]) == (1, 1)
    assert found["workers"][0]["activity"] == "verifying"
    assert found["pid"] == os.getpid()
    shown = status(environment, pipeline).stdout
    assert f"{pipeline}: toy alone, take_all" in shown
    for told in ("cpu:1", "verifying", "runs", "waits"):
        assert told in shown


def test_status_of_nothing_and_of_another_pipeline(environment):
    nothing = status(environment, "--json")
    assert (nothing.returncode, json.loads(nothing.stdout)) == (0, [])
    assert "no pipeline of yours" in status(environment).stderr
    other = status(environment, "specpipe-x")
    assert (other.returncode, other.stdout) == (2, "")
    assert "no pipeline 'specpipe-x'" in other.stderr


def test_top_without_a_terminal_names_what_to_use(environment):
    """A screen's worth of escapes, twice a second, in somebody's log."""
    result = subprocess.run(
        [*SPECPIPE, "top"], capture_output=True, text=True, env=environment, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert "specpipe status" in result.stderr


def test_top_shows_what_comes_and_goes(environment):
    command = [*SPECPIPE[1:], "top", "--every", "0.1"]
    top = pexpect.spawn(
        SPECPIPE[0], command, env=environment, encoding="utf-8", timeout=30, dimensions=(40, 100)
    )
    top.expect("nothing runs")
    with socket_directory() as folder:
        hub = HubClient(folder, (), SETTINGS)
        hub.start(lambda ready: None)
        top.expect(f"{folder.name}: toy alone, take_all")
        hub.close()
    top.expect("nothing runs")
    top.sendintr()
    top.expect(pexpect.EOF)
    deadline = time.monotonic() + 10
    while top.isalive():
        assert time.monotonic() < deadline
    assert top.exitstatus == 0
