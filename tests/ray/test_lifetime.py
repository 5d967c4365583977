"""What a pipeline starts ends with it, whatever happens; what it did not start stays."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from specpipe.actors import Config, Pipeline, SamplingParams
from specpipe.errors import UserError, WorkerError
from tests.marked import nothing_left
from tests.programs import SPECPIPE
from tests.prompts import prompts

PARAMS = SamplingParams(max_tokens=64, ignore_eos=True)


@pytest.fixture
def alone(smollm2):
    """The target without a draft: the quickest to launch."""
    return Config().override(models_dir=str(smollm2.folder.parent), draft={"model": "none"})


@pytest.fixture(autouse=True)
def whole(tmp_path):
    """Fails a test that leaves something behind.

    `tmp_path` first, which is to be where it always is.
    """
    with nothing_left():
        yield


def launch(smollm2, *flags):
    """`specpipe run` as a program of its own."""
    return subprocess.Popen(
        [
            *(*SPECPIPE, "run", "--prompt", "Count from 1 to 1000.", "--ignore-eos"),
            *("--max-tokens", "4000", "--models-dir", smollm2.folder.parent, *flags),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def start(smollm2, *flags):
    """The same, once it has printed its first words."""
    process = launch(smollm2, *flags)
    assert process.stdout.read(4)
    return process


def test_ctrl_c_ends_a_run_soon_and_cleanly(smollm2):
    """1.6 s on a quiet machine, nearly all of it Ray's own end; a hang takes much longer."""
    process = start(smollm2)
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # a terminal signals the whole group
    process.communicate(timeout=10)
    assert time.monotonic() - begun < 6
    assert process.returncode == 130


@pytest.mark.slow
def test_sigterm_ends_a_run_soon_and_cleanly(smollm2):
    """Ray would take the signal over, and the program would not unwind."""
    process = start(smollm2, "--no-draft")
    begun = time.monotonic()
    process.terminate()
    process.communicate(timeout=10)
    assert time.monotonic() - begun < 6
    assert process.returncode == 143


@pytest.mark.slow
def test_sigterm_while_ray_starts_is_told_as_such(smollm2):
    """Ray answers it by an exit code of its own until it has started."""
    process = launch(smollm2, "--no-draft")
    deadline = time.monotonic() + 60
    while not any("raylet" in each.name() for each in psutil.Process(process.pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    family: set[psutil.Process] = set()
    while process.poll() is None:
        with suppress(psutil.Error):
            family |= set(psutil.Process(process.pid).children(recursive=True))
        time.sleep(0.01)
    process.communicate()
    assert process.returncode == 143
    for agent in filter(lives, family):  # Ray's own two; see below
        agent.kill()


def status() -> dict[int, dict[str, Any]]:
    """What `specpipe status` tells of each pipeline, by its program's process."""
    told = subprocess.run(
        [*SPECPIPE, "status", "--json"], capture_output=True, text=True, check=True
    )
    return {each["pid"]: each for each in json.loads(told.stdout)}


def lives(process: psutil.Process) -> bool:
    """Whether it has not come to its end."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_run_is_seen_and_once_killed_takes_its_processes_with_it(smollm2):
    """Figures of nothing, or of what is no more; a dashboard that nobody asked for, which costs
    seconds, memory and an open port.
    """
    process = start(smollm2, "--no-draft")
    found = status()[process.pid]
    assert found["settings"]["model"] == "smollm2"
    assert found["num_requests_running"] == 1
    assert found["counts"]["generation_tokens"] > 0
    assert [worker["activity"] for worker in found["workers"]] == ["verifying"]
    family = {each: each.name() for each in psutil.Process(process.pid).children(recursive=True)}
    assert len(family) > 5, "hub, Ray and a worker"
    process.kill()
    _, said = process.communicate(timeout=10)
    assert b"dashboard" not in said
    # Ray's two agents try for a minute to tell a Ray that is gone of its end, and keep a port for
    # which the next Ray waits.
    for agent in (each for each, name in family.items() if name.endswith("Agent") and lives(each)):
        agent.kill()
    deadline = time.monotonic() + 10
    while left := [name for each, name in family.items() if lives(each)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert process.pid not in status()


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_the_run(smollm2):
    """`specpipe run | head -1` must not leave workers behind, nor a traceback."""
    process = start(smollm2, "--no-draft")
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    assert process.wait(10) != 0
    process.stderr.close()


@pytest.mark.slow
def test_an_exception_in_the_embedding_program_ends_everything(alone):
    def embed():
        with Pipeline.launch(alone) as pipeline:
            next(iter(pipeline.stream(prompts(1)[0], PARAMS)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        embed()
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_ray_that_was_running_is_used_and_left_running(alone):
    """Ending a Ray that is not ours would take other people's work down with it."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with Pipeline.launch(alone) as pipeline:
            assert pipeline.generate(["Hello"], SamplingParams(max_tokens=4))
            names = ray.util.list_named_actors()
            assert len([name for name in names if name.startswith("specpipe-")]) == 1
        assert ray.is_initialized()
        assert ray.util.list_named_actors() == []
    finally:
        ray.shutdown()


@pytest.fixture
def started_ray(tmp_path):
    """A Ray as `ray start` leaves it, at an address; with a token, as is Ray's default."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray_start = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    process = subprocess.Popen(
        [*ray_start, f"--port={port}", "--include-dashboard=false", "--num-cpus=2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    noted = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    deadline = time.monotonic() + 60
    while not (noted.is_file() and noted.read_text().endswith(f":{port}")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait(30)


@pytest.mark.slow
def test_a_ray_at_an_address_is_used_and_left_running(alone, started_ray):
    """Ray sends its token to `auto` alone, and turned us away at its own address."""
    flags = ["--no-draft", "--max-tokens", "4", "--prompt", "Hello", "--address", started_ray]
    models = ["--models-dir", alone.models_dir]
    result = subprocess.run(
        [*SPECPIPE, "run", *flags, *models], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    socket.create_connection(("127.0.0.1", int(started_ray.split(":")[1])), timeout=5).close()


@pytest.mark.slow
def test_the_last_of_two_pipelines_ends_the_ray_that_the_first_one_started(alone):
    """Otherwise closing one pipeline would pull Ray from under the other."""
    first = Pipeline.launch(alone)
    with Pipeline.launch(alone) as second:
        first.close()
        assert second.generate(["Hello"], SamplingParams(max_tokens=4))[0].token_ids
    assert not ray.is_initialized()


def test_a_ray_that_does_not_start_is_one_line(alone, monkeypatch):
    """Ray's own words fill a page, and its exceptions are of all sorts."""

    def fails(**_):
        raise RuntimeError("The current node timed out during startup.\nThis could happen because")

    monkeypatch.setattr(ray, "init", fails)
    with pytest.raises(WorkerError, match=r"^Ray could not be started: .* startup\.$"):
        Pipeline.launch(alone)


def test_a_launch_that_fails_leaves_nothing_running(alone):
    """A dtype that a device lacks is found in the worker, when Ray and the hub already run."""
    with pytest.raises(UserError, match="bfloat16"):
        Pipeline.launch(alone.override(target={"dtype": "bfloat16"}))
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_launch_that_takes_too_long_names_what_it_waited_for(smollm2):
    """Ray would wait for a resource for ever, without a word."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    config = Config().override(
        models_dir=str(smollm2.folder.parent), ray={"num_cpus": 1.5, "launch_timeout_s": 8.0}
    )
    try:
        with pytest.raises(
            WorkerError, match=r"did not come up within 8 s, .*1\.5 CPU \(0\.5 free\)"
        ):
            Pipeline.launch(config)
        assert ray.util.list_named_actors() == []
    finally:
        ray.shutdown()
