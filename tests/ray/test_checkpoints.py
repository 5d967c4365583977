"""Checkpoints of torch in a pipeline: the target's own text, from the files that torch saves."""

import torch

from specpipe.actors import Config, Pipeline, SamplingParams
from tests.unit.models.test_pt_checkpoint import END, make, prefer_padding, save_tokenizer

PROMPTS = ["The sky", "def f(x):", "Größe"]


def written_by(judge, prompt, count):
    """What torch writes by itself; ids without a token are barred."""
    ids = list(prompt)
    while len(ids) < len(prompt) + count and ids[-1] != END:
        ids.append(int(judge(ids)[-1, : END + 1].argmax()))
    return ids[len(prompt) :]


def test_the_pipeline_writes_what_torch_writes(our_ray, tmp_path) -> None:
    """rms1 twice, GELU, a padded vocabulary: whatever is left out gives another text."""
    judge = make(tmp_path / "main_model.pt", change=prefer_padding)

    def resemble(content) -> None:
        torch.manual_seed(1)
        for name, weight in judge.state_dict().items():
            noise = 0.05 * weight.std() * torch.randn_like(weight)
            content["model_state_dict"][name] = weight + noise

    make(tmp_path / "draft_small_model.pt", change=resemble)
    save_tokenizer(tmp_path)
    config = Config().override(
        target={"model": str(tmp_path / "main_model.pt"), "dtype": "float32"},
        draft={"model": str(tmp_path / "draft_small_model.pt")},
        pipeline={"policy": "take_all"},
    )
    with Pipeline.launch(config) as pipeline:
        completions = pipeline.generate(PROMPTS, SamplingParams(max_tokens=40))
        prompts = [pipeline.pair.encode(prompt) for prompt in PROMPTS]
    for prompt, completion in zip(prompts, completions, strict=True):
        assert list(completion.token_ids) == written_by(judge, prompt, 40)
    assert sum(completion.metrics.rollbacks for completion in completions) > 0
    assert sum(completion.metrics.accepted for completion in completions) > 0
