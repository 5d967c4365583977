"""The whole pipeline with real models: same output as the target alone, and nothing left behind."""

import asyncio
import json
import os
import threading

import psutil
import pytest
import ray

from specpipe.actors import Config, Pipeline, SamplingParams
from specpipe.devices import format_cores
from specpipe.errors import UserError
from tests.prompts import prompts

GREEDY = SamplingParams(max_tokens=24)
WARM = SamplingParams(max_tokens=24, temperature=0.8, seed=7)
ALL = SamplingParams(
    max_tokens=32,
    temperature=0.9,
    top_k=50,
    top_p=0.95,
    min_p=0.02,
    repetition_penalty=1.2,
    frequency_penalty=0.3,
    presence_penalty=0.2,
    logit_bias={28: -2.0, 30: 1.5},
    seed=3,
    n=2,
    stop=[" the ", "\n\n"],
    logprobs=3,
)
"""Everything that can be asked at once."""


def content(completion):
    """What must not depend on the draft."""
    told = (completion.token_ids, completion.text, completion.finish_reason, completion.sample)
    return *told, completion.logprobs


@pytest.fixture(scope="module")
def reference(our_ray, smollm2):
    """What the target writes alone, by sampling parameters."""
    models = str(smollm2.folder.parent)
    config = Config().override(models_dir=models, draft={"model": "none"})
    with Pipeline.launch(config) as pipeline:
        return {
            params: [content(c) for c in pipeline.generate(prompts(3), params)]
            for params in (GREEDY, WARM, ALL)
        }


DRAFTS = (
    {"model": "smollm2", "drafter": "model", "dtype": "gguf", "head_tokens": 0},
    {"model": "smollm2-pruned", "drafter": "hybrid", "remember": 5000},
)
SLOTS = {"smollm2": 1, "smollm2-pruned": 3}
"""Sequences at once: one after the other, and several in a pass."""


@pytest.fixture(scope="module", params=DRAFTS, ids=["itself", "pruned and look-ups"])
def pipeline(our_ray, request, smollm2, smollm2_pruned):
    config = Config().override(
        models_dir=str(smollm2.folder.parent),
        draft=request.param,
        # elastic may let such a draft rest
        pipeline={"policy": "take_all", "max_num_seqs": SLOTS[request.param["model"]]},
    )
    with Pipeline.launch(config) as pipeline:
        yield pipeline


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["elastic", "serial:3"])
def test_no_policy_changes_what_the_target_writes(policy, reference, smollm2, tmp_path):
    """Pauses and waits, with real workers; and the recording says what was sent."""
    record = tmp_path / "run.jsonl"
    config = Config().override(
        models_dir=str(smollm2.folder.parent), pipeline={"policy": policy, "record": str(record)}
    )
    with Pipeline.launch(config) as pipeline:
        for params in (GREEDY, ALL):
            completions = pipeline.generate(prompts(1), params)
            assert [content(c) for c in completions] == reference[params][: params.n]
            assert all(c.metrics.protocol_errors == 0 for c in completions)
            if policy == "serial:3":
                assert all(c.metrics.accepted > 0 for c in completions), "it never speculated"
    kinds = [json.loads(line)["type"] for line in record.read_text().splitlines()]
    assert "pass" in kinds
    assert "guess" in kinds


def test_look_ups_alone_need_no_model_and_change_nothing(reference, smollm2):
    """A draft model loaded all the same takes a core and a gigabyte, and nobody sees it."""
    config = Config().override(models_dir=str(smollm2.folder.parent), draft={"drafter": "ngram"})
    with Pipeline.launch(config) as pipeline:
        assert pipeline.workers.keys() == {"target"}
        assert pipeline.workers["target"].sources == ("ngram",)
        for params in (GREEDY, ALL):
            completions = pipeline.generate(prompts(1), params)
            assert [content(c) for c in completions] == reference[params][: params.n]
        (listing,) = pipeline.generate(["Repeat 20 times: one two three"], GREEDY)
    metrics = listing.metrics
    assert metrics.ngram.drafted > 0
    assert metrics.model.drafted == metrics.timeouts == metrics.protocol_errors == 0


def test_a_second_turn_is_the_same_from_the_cache_and_read_anew(pipeline):
    """What the first turn left in the caches, off by a token or a bit."""
    params = SamplingParams(max_tokens=16, temperature=0.9, seed=5, logprobs=2)
    turns = [{"role": "user", "content": "Name three rivers."}]
    (first,) = pipeline.generate([turns], params)
    turns += [{"role": "assistant", "content": first.text}]
    turns += [{"role": "user", "content": "And three lakes?"}]
    (cached,) = pipeline.generate([turns], params)
    pipeline.generate(["Something else."], params)
    (anew,) = pipeline.generate([turns], params)
    assert content(cached) == content(anew)
    assert cached.metrics.cached_tokens >= first.metrics.prompt_tokens
    if pipeline.config.pipeline.max_num_seqs == 1:  # else the other prompt has a slot of its own
        assert anew.metrics.cached_tokens < first.metrics.prompt_tokens, "the template's beginning"
    assert len(cached.origins) == len(cached.token_ids)


@pytest.mark.parametrize("params", [GREEDY, WARM, ALL], ids=["greedy", "sampled", "all options"])
def test_a_draft_never_changes_what_the_target_writes(pipeline, reference, params):
    """Tokens, text, end and log-probabilities: all are the target's own."""
    completions = pipeline.generate(prompts(3), params)
    assert [content(c) for c in completions] == reference[params]


def test_options_have_their_effect(reference):
    """An option that is lost on its way is lost on both sides, and comparing them shows nothing."""
    assert len(reference[ALL]) == 2 * len(reference[GREEDY])
    assert len({tuple(tokens) for tokens, *_ in reference[ALL]}) == len(reference[ALL])
    for tokens, text, reason, sample, logprobs in reference[ALL]:
        assert sample in {0, 1}
        assert len(logprobs) == len(tokens)
        assert all(len(each.top_ids) == 3 for each in logprobs)
        for token, each in zip(tokens, logprobs, strict=True):
            known = dict(zip(each.top_ids, each.top_logprobs, strict=True))
            assert known.get(token, each.logprob) == each.logprob
            assert each.logprob <= each.top_logprobs[0] <= 0
        assert " the " not in text
        assert "\n\n" not in text
        assert reason in {"stop", "length"}
    assert "stop" in {reason for _, _, reason, _, _ in reference[ALL]}


def test_answer_ends_before_the_stop_text_and_counts_nothing_after_it(pipeline, reference):
    """Tokens of the same block that come after it must be neither shown nor counted."""
    tokens, text, *_ = reference[GREEDY][0]
    stop = text[len(text) // 2 :][:5]
    params = SamplingParams(max_tokens=24, stop=stop)
    with pipeline.stream(prompts(1)[0], params) as stream:
        shown = "".join(stream)
    completion = stream.completion
    assert completion.finish_reason == "stop"
    assert shown == completion.text == text[: text.index(stop)]
    assert completion.token_ids == tokens[: len(completion.token_ids)]
    assert completion.metrics.completion_tokens == len(completion.token_ids)
    decode = pipeline.pair.tokenizer.decode
    assert stop in decode(completion.token_ids)
    assert stop not in decode(completion.token_ids[:-1])
    if pipeline.pair.draft.name == "smollm2":
        assert completion.metrics.acceptance_rate == 1.0


def test_a_resource_that_no_node_has_is_refused_at_once(our_ray, smollm2):
    """Ray would wait for it for ever."""
    models, has = str(smollm2.folder.parent), ray.cluster_resources()["CPU"]
    with pytest.raises(UserError, match=f"asks Ray for 6400 CPU, and this node has {has:g}"):
        Pipeline.launch(Config().override(models_dir=models, ray={"num_cpus": 6400.0}))


def test_tokens_that_the_target_lacks_are_refused(pipeline):
    with pytest.raises(UserError, match="logit_bias names the token id 99999"):
        pipeline.generate(prompts(1), SamplingParams(logit_bias={99_999: 1.0}))
    with pytest.raises(UserError, match="stop_token_ids names the token id 99999"):
        pipeline.generate(prompts(1), SamplingParams(stop_token_ids=[3, 99_999]))


def test_models_run_at_the_priority_of_the_program(pipeline):
    """Ray's own default is nice 15: beside any busy program a model would nearly stand still."""
    hosts = [
        process
        for process in psutil.Process().children(recursive=True)
        if any("TargetHost" in part or "DraftHost" in part for part in process.cmdline())
    ]
    assert hosts
    assert {process.nice() for process in hosts} == {psutil.Process().nice()}


def test_rejection_writes_with_real_models(smollm2, smollm2_pruned, reference):
    """Its laws travel through the real codec and sockets; greedily it is the coupled rule."""
    config = Config().override(
        models_dir=str(smollm2.folder.parent),
        pipeline={"acceptance": "rejection", "policy": "take_all"},
    )
    with Pipeline.launch(config) as pipeline:
        greedy = pipeline.generate(prompts(1), GREEDY)
        completions = pipeline.generate(prompts(2), WARM)
    assert [content(c) for c in greedy] == reference[GREEDY][:1]
    for completion in completions:
        metrics = completion.metrics
        assert (metrics.protocol_errors, metrics.timeouts) == (0, 0)
        assert metrics.accepted > 0
        assert completion.finish_reason in {"stop", "length"}


def test_a_run_without_faults_has_no_timeout_and_no_protocol_error(pipeline):
    for completion in pipeline.generate(prompts(3), GREEDY):
        metrics = completion.metrics
        assert (metrics.timeouts, metrics.protocol_errors) == (0, 0)
        assert metrics.accepted <= metrics.sent <= metrics.drafted


@pytest.mark.parametrize("pipeline", DRAFTS[:1], ids=["itself"], indirect=True)
def test_the_target_as_its_own_draft_is_always_right(pipeline):
    """One wrong bit in a cache, or one token of noise at the wrong position, would show here."""
    params = SamplingParams(max_tokens=64, ignore_eos=True, temperature=1.0, seed=2)
    for prompt in prompts(2):  # one at a time: of two, each is drafted while the other is verified
        (completion,) = pipeline.generate([prompt], params)
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


def test_asyncio_gets_the_same_answers_and_pieces(pipeline, reference):
    """Sinks run in another thread than the event loop, which is to be woken and not held up."""

    async def all_answers():
        whole = await pipeline.generate_async(prompts(3), GREEDY)
        async with pipeline.stream_async(prompts(1)[0], GREEDY) as stream:
            pieces = [piece async for piece in stream]
        async with pipeline.stream_async("Count from 1 to 1000.", GREEDY) as left:
            async for _ in left:
                break
        return whole, pieces, await stream.completion(), await left.completion()

    whole, pieces, streamed, left = asyncio.run(all_answers())
    assert [content(c) for c in whole] == reference[GREEDY]
    assert content(streamed) == reference[GREEDY][0]
    assert "".join(pieces) == streamed.text
    assert left.finish_reason in {"abort", "length"}


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
    assert [results[i] for i in range(3)] == [tokens for tokens, *_ in reference[GREEDY]]


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
