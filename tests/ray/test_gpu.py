"""CUDA: run with `make test-gpu` on a machine that has GPUs."""

from typing import Any

import pytest
import torch

from specpipe.actors import Config, Pipeline, SamplingParams
from specpipe.actors.nodes import Layout, Site
from specpipe.actors.supervisor import Supervisor
from specpipe.devices import Device, Placement
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


@pytest.mark.gpu
def test_pipelines_live_beside_each_other_on_one_gpu(smollm2):
    """The benchmark keeps all of its own at once: the second waited for what the first had."""
    together = config(smollm2, "cuda:0", "cuda:0")
    with (
        Pipeline.launch(together) as one,
        Pipeline.launch(together.override(draft={"model": "none"})) as other,
    ):
        written = [pipeline.generate(prompts(1), PARAMS)[0].token_ids for pipeline in (one, other)]
    assert written[0] == written[1]


@pytest.mark.parametrize(("ours", "reserved"), [(True, 0.0), (False, 1.0)])
def test_a_gpu_is_reserved_where_others_may_want_it(ours, reserved, tmp_path):
    """In a Ray of our own nobody else is there, and our own pipelines would wait for each other."""
    gpu, here = Device("cuda", gpu=0), Site(None, (0,), 1)
    layout = Layout(
        {"target": here}, Placement(None, gpu), draft_computes=False, hub=Device("auto")
    )
    anything: Any = None
    supervisor = Supervisor(anything, layout, Config(), tmp_path, anything, owns_ray=ours)
    assert supervisor._wants("target")["GPU"] == reserved
