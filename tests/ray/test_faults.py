"""Workers that are killed and stopped: the text stays the same, and nothing is left behind."""

import asyncio
import dataclasses
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray

from specpipe.actors import Config, Pipeline, SamplingParams
from specpipe.errors import SpecpipeError
from tests.prompts import prompts
from tests.storm import FAULTS, Victims
from tests.traces import traces

PARAMS = SamplingParams(max_tokens=60, ignore_eos=True, temperature=0.9, seed=3)
LONG = "Summarize: " + " ".join(prompts(10)) * 4


@pytest.fixture(scope="module")
def config(smollm2, smollm2_pruned):
    return Config().override(
        models_dir=str(smollm2.folder.parent),
        draft={"model": smollm2_pruned.name},
        pipeline={"policy": "take_all"},  # elastic may let such a draft rest
        ray={"hang_timeout_s": 2.0},
    )


@pytest.fixture(scope="module")
def pipeline(our_ray, config):
    with Pipeline.launch(config) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def whole(pipeline):
    """What is written when nothing happens."""
    return {prompt: pipeline.generate([prompt], PARAMS)[0] for prompt in (prompts(1)[0], LONG)}


@pytest.fixture
def victims(pipeline):
    victims = Victims(pipeline)
    yield victims
    victims.wait_until_up(120)


def check_resumed(pipeline, whole, prompt):
    """All workers are back, and work as before."""
    (again,) = pipeline.generate([prompt], PARAMS)
    assert again.token_ids == whole[prompt].token_ids
    assert again.metrics.accepted > 0, "drafting resumes by itself"


@pytest.mark.parametrize("fault", ["target stopped", "both killed"])
def test_a_worker_that_is_killed_or_hangs_costs_time_and_no_token(pipeline, whole, victims, fault):
    """The short cut of `make chaos`. A stopped process says nothing, and Ray doesn't notice."""
    prompt = prompts(1)[0]
    before = {role: worker.incarnation for role, worker in pipeline.workers.items()}
    with pipeline.stream(prompt, PARAMS) as stream:
        next(iter(stream))
        victims.strike(fault)
        assert stream.completion.token_ids == whole[prompt].token_ids
    victims.wait_until_up(120)
    for role in FAULTS[fault][1]:
        assert pipeline.workers[role].incarnation == before[role] + 1
    check_resumed(pipeline, whole, prompt)


def test_a_stopped_draft_does_not_hold_the_target_up(pipeline, whole, victims):
    """Waiting for it at each token, until it is found out, writes a token a second."""
    prompt, before = prompts(1)[0], pipeline.workers["draft"].incarnation
    with pipeline.stream(prompt, PARAMS) as stream:
        pieces = stream.spans()
        next(pieces)
        victims.strike("draft stopped")
        begun, timeout_s = time.monotonic(), pipeline.config.pipeline.wait_timeout_s
        for _, _ in zip(range(20), pieces, strict=False):
            pass
        assert time.monotonic() - begun < 20 * timeout_s / 2
        assert stream.completion.token_ids == whole[prompt].token_ids
    while pipeline.workers["draft"].incarnation == before:
        time.sleep(0.05)
    check_resumed(pipeline, whole, prompt)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_costs_a_token_neither_in_a_prompt_nor_in_an_answer(
    pipeline, whole, victims, fault
):
    """All of them, while the prompt is read and while the answer is written."""
    for prompt in whole:
        with pipeline.stream(prompt, PARAMS) as stream:
            if prompt != LONG:
                next(iter(stream))
            victims.strike(fault)
            assert stream.completion.token_ids == whole[prompt].token_ids
        victims.wait_until_up(120)


@pytest.mark.slow
def test_a_worker_that_is_killed_again_and_again_soon_after_it_came_back(pipeline, whole, victims):
    """It works each time; one of which nothing comes is given up after six times."""
    prompt = prompts(1)[0]
    long = dataclasses.replace(PARAMS, max_tokens=1500)
    with pipeline.stream(prompt, long) as stream:
        pieces = iter(stream)
        for _ in range(7):
            next(pieces)
            time.sleep(0.5)  # it reads what was written so far, and writes on
            victims.strike("target killed")
            victims.wait_until_up(120)
        tokens = stream.completion.token_ids
    assert len(tokens) == 1500
    assert tokens[: PARAMS.max_tokens] == whole[prompt].token_ids


@pytest.mark.slow
def test_a_slow_worker_is_not_taken_for_one_that_hangs(pipeline, whole):
    """Beside eight busy programs a pass takes ten times as long."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8)]
    try:
        before = dict(pipeline.workers)
        for prompt, expected in whole.items():
            assert pipeline.generate([prompt], PARAMS)[0].token_ids == expected.token_ids
        assert pipeline.workers == before
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_target_that_cannot_come_back_ends_requests_with_their_text(
    our_ray, config, smollm2, tmp_path
):
    """Its file is gone: it would be started for ever, and nobody be told."""
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(smollm2.weights.read_bytes())
    alone = config.override(target={"model": str(copy)}, draft={"model": "none"})
    with Pipeline.launch(alone) as pipeline:
        params = SamplingParams(max_tokens=2000, ignore_eos=True)
        with pipeline.stream(prompts(1)[0], params) as stream:
            next(iter(stream))
            copy.unlink()
            Victims(pipeline).strike("target killed")
            completion = stream.completion
        assert completion.finish_reason == "error"
        assert len(completion.token_ids) > 0
        assert "copy.gguf" in completion.cause
        assert "\n" not in completion.cause
        with pytest.raises(SpecpipeError, match=r"copy\.gguf"):
            pipeline.generate(prompts(1), PARAMS)
        assert not pipeline.alive


@pytest.mark.slow
def test_workers_end_with_their_coordinator(our_ray, config):
    """They would keep their cores, memory and GPU, for nobody."""
    alone = config.override(draft={"model": "none"})
    others = set(ray.util.list_named_actors())  # of the pipeline that other tests share
    with Pipeline.launch(alone) as pipeline:
        assert set(ray.util.list_named_actors()) - others
        pipeline._hub.kill()
        deadline = time.monotonic() + 20
        while set(ray.util.list_named_actors()) - others:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with pytest.raises(SpecpipeError, match="coordinator's process ended"):
            pipeline.generate(prompts(1), PARAMS)


@pytest.mark.slow
def test_aborts_at_any_moment_leave_every_slot_free(pipeline):
    """Each abort at another moment: queued, while the prompt is read, while a block is judged."""
    for moment in range(30):
        streams = [pipeline.stream(LONG, PARAMS) for _ in range(12)]  # more than there are slots
        time.sleep(moment / 100)
        for stream in streams:
            stream.abort()
        assert {stream.completion.finish_reason for stream in streams} <= {"abort", "length"}
    begun = time.monotonic()
    (completion,) = pipeline.generate(["Hello"], SamplingParams(max_tokens=1))
    assert time.monotonic() - begun < 10
    assert completion.token_ids


@pytest.mark.slow
def test_a_stream_that_nobody_reads_holds_its_answer_and_no_more(pipeline):
    """Each piece as it came, in a queue of its own, takes ten times the room."""
    params = SamplingParams(max_tokens=500, ignore_eos=True)
    stream = pipeline.stream(prompts(1)[0], params)
    pipeline.generate(prompts(1), params)  # the two take turns, so by then it is done
    assert len(stream._unread._updates) <= 2
    assert len(stream.completion.token_ids) == 500


@pytest.mark.slow
def test_a_million_prompts_are_taken_one_after_the_other(pipeline):
    """As fast as they can be submitted, they filled memory; now whoever submits waits."""
    with Pipeline.launch(pipeline.config.override(pipeline={"max_waiting": 16})) as narrow:
        narrow.generate(["Hello"], SamplingParams(max_tokens=1))  # starts what renders prompts
        done, before = [], traces()
        enough = threading.Event()

        def flood():
            for _ in range(1_000_000):
                if enough.is_set():
                    return
                done.append(narrow.submit("Hello", SamplingParams(max_tokens=1)))

        thread = threading.Thread(target=flood)
        thread.start()
        time.sleep(8)
        assert sum(not future.done() for future in done) <= 16
        assert not traces().more_than(before, megabytes=30, files=2)
        enough.set()
        thread.join()
        many = asyncio.run(narrow.generate_async(["Hello"] * 40, SamplingParams(max_tokens=1)))
        assert len({completion.text for completion in many}) == 1


def is_hub(process, folder):
    """Whether a process is the hub of a pipeline whose sockets are in that folder."""
    try:
        return str(folder) in " ".join(process.cmdline()) and "specpipe.hub" in process.cmdline()
    except psutil.Error:
        return False


@pytest.fixture
def folder():
    """For sockets, whose paths may not be as long as those that pytest gives."""
    with tempfile.TemporaryDirectory(prefix="t-") as name:
        yield Path(name)


@pytest.mark.slow
def test_a_program_that_is_killed_with_its_hub_is_swept_up_by_the_next(config, folder):
    """Nobody is left who could clean up, but the next start."""
    program = (
        "import time; from specpipe.actors import Config, Pipeline\n"
        f"config = Config().override(models_dir={config.models_dir!r}, draft={{'model': 'none'}})\n"
        "with Pipeline.launch(config) as pipeline: print('up', flush=True); time.sleep(600)\n"
    )
    env = os.environ | {"TMPDIR": str(folder), "RAY_ADDRESS": "local"}
    driver = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=env, start_new_session=True
    )
    assert driver.stdout.readline() == b"up\n"
    family = psutil.Process(driver.pid).children(recursive=True)
    (hub,) = (p for p in psutil.process_iter() if is_hub(p, folder))
    hub.kill()
    driver.kill()
    driver.communicate()
    _, alive = psutil.wait_procs(family, timeout=90)  # Ray's agents try for a minute to reach it
    assert alive == [], "workers that nobody leads"
    (left,) = folder.glob("specpipe-*")
    check = "from specpipe.channel import socket_directory as d\nwith d(): pass\n"
    subprocess.run([sys.executable, "-c", check], env=env, check=True)
    assert not left.exists()
    assert not list(folder.glob("specpipe-*"))
