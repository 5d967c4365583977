"""The promise on real models, at length: a draft never changes a token. Runs for some minutes."""

import pytest

from specpipe.actors import Config, Pipeline, SamplingParams
from tests.prompts import prompts

SAMPLING = {
    "greedy": SamplingParams(max_tokens=64),
    "T=0.8": SamplingParams(max_tokens=64, temperature=0.8, seed=20),
}


def write(config, figures=None):
    with Pipeline.launch(config) as pipeline:
        answers = {}
        for name, params in SAMPLING.items():
            completions = pipeline.generate(prompts(20), params)
            answers[name] = [c.token_ids for c in completions]
            if figures is not None:
                sent = sum(c.metrics.sent for c in completions)
                accepted = sum(c.metrics.accepted for c in completions)
                figures[name] = accepted / sent
        return answers


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_prompts_with_two_drafts_equal_the_target_alone(smollm2, smollm2_pruned):
    models, always = str(smollm2.folder.parent), {"policy": "take_all"}  # elastic may rest a draft
    config = Config().override(models_dir=models, pipeline=always)
    reference = write(config.override(draft={"model": "none"}))
    for draft, alike in ((smollm2, True), (smollm2_pruned, False)):
        figures = {}
        table = {"model": draft.name, "drafter": "model"}
        if alike:
            table |= {"dtype": "gguf", "head_tokens": 0}  # the target's very weights
        answers = write(config.override(draft=table), figures)
        assert answers == reference
        for rate in figures.values():
            assert rate == 1.0 if alike else 0.1 < rate < 1.0
