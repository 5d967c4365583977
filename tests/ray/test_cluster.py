"""Two real Ray nodes on this machine: the parts of a pipeline on both, TCP between them."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import zmq

from specpipe.actors import Config, Pipeline, SamplingParams
from specpipe.actors.nodes import alive, this_node
from specpipe.errors import UserError
from tests.prompts import prompts

PARAMS = SamplingParams(max_tokens=48, temperature=0.8, seed=7, ignore_eos=True)
SECOND = "second"


@pytest.fixture(scope="module")
def cluster(our_ray) -> Iterator[None]:
    """A second node beside the one that we start."""
    address = ray.get_runtime_context().gcs_address
    ray_start = [str(Path(sys.executable).with_name("ray")), "start", f"--address={address}"]
    # In its own folder it notes the address where no other program of this machine looks for one.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        process = subprocess.Popen(
            [
                *ray_start,
                "--block",
                "--num-cpus=2",
                f"--node-name={SECOND}",
                f"--temp-dir={folder}",
                "--dashboard-agent-listen-port=0",  # for the usual one, the other's, it waits
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while len(alive()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield
        process.terminate()
        process.wait(30)


@pytest.fixture
def config(cluster, smollm2):
    return Config().override(
        models_dir=str(smollm2.folder.parent),
        target={"device": "cpu:1"},
        draft={"model": "smollm2-pruned", "device": "cpu:0"},
        # elastic may let such a draft rest; and other work may delay it.
        pipeline={"policy": "take_all", "wait_timeout_s": 60.0},
    )


@pytest.fixture(scope="module")
def written(cluster, smollm2) -> list[list[int]]:
    """What the target writes alone, on this node."""
    models = str(smollm2.folder.parent)
    config = Config().override(
        models_dir=models, draft={"model": "none"}, target={"device": "cpu:1"}
    )
    with Pipeline.launch(config) as pipeline:
        return [each.token_ids for each in pipeline.generate(prompts(2), PARAMS)]


def actors() -> dict[str, dict[str, Any]]:
    """Ray's word on our actors that live: by role."""
    found = ray._private.state.actors().values()
    living = [each for each in found if each["State"] == "ALIVE"]
    return {each["Name"].split("-")[2]: each for each in living if each["Name"]}


def ports() -> set[int]:
    """At which hubs listen."""
    hubs = [
        p for p in psutil.process_iter(["cmdline"]) if "specpipe.hub" in (p.info["cmdline"] or [])
    ]
    connections = [each for hub in hubs for each in hub.net_connections("tcp")]
    return {each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN}


@contextmanager
def launched(config: Config) -> Iterator[Pipeline]:
    """A pipeline that must leave nothing behind."""
    with Pipeline.launch(config) as pipeline:
        yield pipeline
    deadline = time.monotonic() + 10
    while actors() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert actors() == {}
    assert ports() == set()


def test_a_draft_on_another_node_guesses_and_changes_nothing(config, written):
    """Its caches are filled, and its times read, through another kind of socket."""
    with launched(config.override(draft={"node": SECOND})) as pipeline:
        nodes = {role: actor["Address"]["NodeID"] for role, actor in actors().items()}
        assert nodes["target"] == this_node().id
        assert nodes["draft"] == next(node.id for node in alive() if SECOND in node.names)
        (port,) = ports()
        with zmq.Context.instance().socket(zmq.PAIR) as stranger:
            stranger.linger = 0
            stranger.connect(f"tcp://{this_node().address}:{port}")
            stranger.send(b"let me in")
            completions = pipeline.generate(prompts(2), PARAMS)
        assert [each.token_ids for each in completions] == written
        for metrics in (each.metrics for each in completions):
            assert (metrics.timeouts, metrics.protocol_errors) == (0, 0)
            assert metrics.accepted > 0
            assert 0 < metrics.overlap <= 1
        psutil.Process(actors()["draft"]["Pid"]).kill()
        (again,) = pipeline.generate(prompts(1), PARAMS)
        assert again.token_ids == written[0]
        deadline = time.monotonic() + 60
        while pipeline.workers["draft"].incarnation < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        (again,) = pipeline.generate(prompts(1), PARAMS)
        assert again.token_ids == written[0]
        assert again.metrics.accepted > 0, "drafting resumes by itself"


@pytest.mark.slow
def test_a_target_on_another_node_that_dies_is_replaced_there(config, written):
    """The new one has other keys, another port, and all committed tokens to read."""
    with launched(config.override(target={"node": SECOND})) as pipeline:
        first = ports()
        with pipeline.stream(prompts(1)[0], PARAMS) as stream:
            pieces = iter(stream)
            next(pieces)
            psutil.Process(actors()["target"]["Pid"]).kill()
            assert stream.completion.token_ids == written[0]
        assert pipeline.workers["target"].incarnation == 2
        assert ports() != first
        (again,) = pipeline.generate(prompts(1), PARAMS)
        assert again.token_ids == written[0]


def test_a_node_that_is_none_or_several_is_refused_with_those_there_are(config):
    """The two nodes have one address here: a guess would be wrong half of the time."""
    second = next(node for node in alive() if SECOND in node.names)
    with pytest.raises(UserError, match=f"no node .* is called 'third': .*{second.id}"):
        Pipeline.launch(config.override(draft={"node": "third"}))
    with pytest.raises(UserError, match=f"2 nodes are called '{second.address}': give the id"):
        Pipeline.launch(config.override(draft={"node": second.address}))
    assert actors() == {}


def test_what_a_node_lacks_is_named_with_the_node(config, smollm2, tmp_path, monkeypatch):
    """Its worker would find no model, after a launch, and say nothing of where."""
    monkeypatch.chdir(smollm2.folder)  # the node's processes are elsewhere
    model = f"/proc/self/cwd/{smollm2.weights.name}"
    elsewhere = config.override(target={"node": SECOND, "model": model}, draft={"model": "none"})
    with pytest.raises(UserError, match=rf"node .* has no {model}: copy it .* --target-node out"):
        Pipeline.launch(elsewhere)
    absent = config.override(draft={"node": SECOND, "device": "cpu:977"})
    with pytest.raises(UserError, match=r"on node .*: draft device cpu:977 asks for core 977"):
        Pipeline.launch(absent)
    assert actors() == {}
