"""The whole pipeline with real models: same output as the target alone, and nothing left behind."""

import json
import os
import threading

import psutil
import pytest

from specpipe.actors import Config, Pipeline, SamplingParams
from specpipe.devices import format_cores
from specpipe.errors import UserError
from tests.prompts import prompts

GREEDY = SamplingParams(max_tokens=32)
WARM = SamplingParams(max_tokens=32, temperature=0.8, seed=7)


@pytest.fixture(scope="module")
def reference(smollm2):
    """What the target writes alone, by sampling parameters."""
    models = str(smollm2.folder.parent)
    config = Config().override(models_dir=models, draft={"model": "none"})
    with Pipeline.launch(config) as pipeline:
        return {
            params: [c.token_ids for c in pipeline.generate(prompts(3), params)]
            for params in (GREEDY, WARM)
        }


@pytest.fixture(scope="module", params=["smollm2", "smollm2-pruned"])
def pipeline(request, smollm2, smollm2_pruned):
    config = Config().override(
        models_dir=str(smollm2.folder.parent),
        draft={"model": request.param},
        pipeline={"policy": "take_all"},  # elastic may let such a draft rest
    )
    with Pipeline.launch(config) as pipeline:
        yield pipeline


@pytest.mark.parametrize("policy", ["elastic", "serial:3"])
def test_no_policy_changes_what_the_target_writes(policy, reference, smollm2, tmp_path):
    """Pauses and waits, with real workers; and the recording says what was sent."""
    record = tmp_path / "run.jsonl"
    config = Config().override(
        models_dir=str(smollm2.folder.parent), pipeline={"policy": policy, "record": str(record)}
    )
    with Pipeline.launch(config) as pipeline:
        for params, expected in reference.items():
            completions = pipeline.generate(prompts(3), params)
            assert [c.token_ids for c in completions] == expected
            assert all(c.metrics.protocol_errors == 0 for c in completions)
            if policy == "serial:3":
                assert all(c.metrics.accepted > 0 for c in completions), "it never speculated"
    kinds = [json.loads(line)["type"] for line in record.read_text().splitlines()]
    assert "pass" in kinds
    assert "guess" in kinds


@pytest.mark.parametrize("params", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_a_draft_never_changes_what_the_target_writes(pipeline, reference, params):
    completions = pipeline.generate(prompts(3), params)
    assert [c.token_ids for c in completions] == reference[params]


def test_a_run_without_faults_has_no_timeout_and_no_protocol_error(pipeline):
    for completion in pipeline.generate(prompts(3), GREEDY):
        metrics = completion.metrics
        assert (metrics.timeouts, metrics.protocol_errors) == (0, 0)
        assert metrics.accepted <= metrics.sent <= metrics.drafted


def test_the_target_as_its_own_draft_is_always_right(pipeline):
    """One wrong bit in a cache, or one token of noise at the wrong position, would show here."""
    if pipeline.pair.draft.name != "smollm2":
        assert all(c.metrics.acceptance_rate < 1 for c in pipeline.generate(prompts(1), GREEDY))
        return
    params = SamplingParams(max_tokens=64, ignore_eos=True, temperature=1.0, seed=2)
    for completion in pipeline.generate(prompts(2), params):
        assert completion.metrics.acceptance_rate == 1.0
        assert completion.metrics.rollbacks == 0
        assert completion.metrics.useful_overlap > 0, "drafting never ran beside a verification"


def test_the_pieces_of_a_stream_are_the_text_of_the_completion(pipeline):
    with pipeline.stream(prompts(1)[0], GREEDY) as stream:
        pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == stream.completion.text
    assert stream.completion.metrics.completion_tokens == len(stream.completion.token_ids)


def test_a_stream_left_early_is_aborted_and_its_slot_is_free_for_the_next(pipeline):
    with pipeline.stream("Count from 1 to 1000.", SamplingParams(max_tokens=4000)) as stream:
        next(iter(stream))
    assert stream.completion.finish_reason == "abort"
    assert pipeline.generate(prompts(1), GREEDY)[0].finish_reason in {"stop", "length"}


def test_a_bad_prompt_among_good_ones_starts_nothing(pipeline):
    with pytest.raises(UserError, match="prompt is empty"):
        pipeline.generate(["Hello", ""], GREEDY)
    with pytest.raises(UserError, match="token id 999999"):
        pipeline.generate([[1, 999_999]], GREEDY)


def test_one_pipeline_serves_several_threads(pipeline, reference):
    results = {}

    def work(i, prompt):
        results[i] = pipeline.generate([prompt], GREEDY)[0].token_ids

    threads = [threading.Thread(target=work, args=item) for item in enumerate(prompts(3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(3)] == reference[GREEDY]


def test_workers_run_on_the_cores_that_they_report(pipeline):
    """sched_setaffinity(0) pins the calling thread alone; torch's others would wander."""
    if len(os.sched_getaffinity(0)) < 2:
        return
    by_cores = {tuple(sorted(worker.cores)) for worker in pipeline.workers.values()}
    assert len(by_cores) == 2, "draft and target must not share cores"
    for worker in pipeline.workers.values():
        assert worker.device == f"cpu:{format_cores(worker.cores)}"
    pinned = [
        {tuple(sorted(os.sched_getaffinity(thread.id))) for thread in process.threads()}
        for process in psutil.process_iter(["cmdline"])
        if any("WorkerHost" in part for part in process.info["cmdline"] or [])
    ]
    assert all(len(affinities) == 1 for affinities in pinned)
