"""CUDA: run with `make test-gpu` on a machine that has GPUs."""

import pytest
import torch

from specpipe.actors import Config, Pipeline, SamplingParams
from tests.prompts import prompts

PARAMS = SamplingParams(max_tokens=32, temperature=0.8, seed=7)


def config(smollm2, draft_device, target_device):
    return Config().override(
        models_dir=str(smollm2.folder.parent),
        target={"device": target_device},
        draft={"model": "smollm2", "device": draft_device, "drafter": "model", "head_tokens": 0},
        pipeline={"policy": "take_all"},  # elastic may let such a draft rest
    )


@pytest.mark.gpu
def test_two_models_on_one_gpu_share_a_process_and_change_nothing(smollm2):
    """Two processes on one GPU are time-sliced and overlap nothing."""
    together = config(smollm2, "cuda:0", "cuda:0")
    with Pipeline.launch(together.override(draft={"model": "none"})) as pipeline:
        alone = [c.token_ids for c in pipeline.generate(prompts(3), PARAMS)]
    with Pipeline.launch(together) as pipeline:
        completions = pipeline.generate(prompts(3), PARAMS)
        assert {worker.device for worker in pipeline.workers.values()} == {"cuda:0"}
    assert [c.token_ids for c in completions] == alone
    assert all(c.metrics.acceptance_rate == 1.0 for c in completions)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_hold_a_model_each(smollm2):
    with Pipeline.launch(config(smollm2, "cuda:0", "cuda:1")) as pipeline:
        assert pipeline.workers["draft"].device == "cuda:0"
        assert pipeline.workers["target"].device == "cuda:1"
        assert all(c.metrics.acceptance_rate == 1.0 for c in pipeline.generate(prompts(3), PARAMS))
