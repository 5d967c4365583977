"""An independent reference: the target alone writes what transformers writes with its weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from specpipe.actors import Config, Pipeline, SamplingParams
from tests.prompts import prompts

TOKENS = 64
EXPLAINED = 1e-3  # a gap between two logits that float32 rounding can close


@pytest.fixture(scope="module")
def reference(smollm2):
    """Reads the file with transformers' own GGUF code: none of ours has a part in it."""
    model = AutoModelForCausalLM.from_pretrained(
        smollm2.folder, gguf_file=smollm2.weights.name, dtype=torch.float32
    )
    return model.eval()


def greedy(model, prompt, count, stop):
    """What transformers writes, and its logits for each step."""
    result = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        generation_config=GenerationConfig(
            max_new_tokens=count, do_sample=False, eos_token_id=list(stop), pad_token_id=stop[0]
        ),
        return_dict_in_generate=True,
        output_logits=True,
    )
    return result.sequences[0, len(prompt) :].tolist(), [row[0] for row in result.logits]


def compare(smollm2, reference, count):
    config = Config().override(
        models_dir=str(smollm2.folder.parent),
        target={"dtype": "float32"},
        draft={"model": "none"},
    )
    with Pipeline.launch(config) as pipeline:
        encoded = [pipeline.pair.encode(prompt) for prompt in prompts(count)]
        stop = pipeline.pair.tokenizer.stop_token_ids
        ours = pipeline.generate(encoded, SamplingParams(max_tokens=TOKENS))
    for prompt, completion in zip(encoded, ours, strict=True):
        theirs, logits = greedy(reference, prompt, TOKENS, stop)
        pairs = zip(completion.token_ids, theirs, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if at is None:
            assert len(completion.token_ids) == len(theirs)
            continue
        gap = float(logits[at][theirs[at]] - logits[at][completion.token_ids[at]])
        assert gap < EXPLAINED, f"token {at} differs, and the logits by {gap}"


@pytest.mark.slow
def test_one_prompt(smollm2, reference):
    compare(smollm2, reference, 1)


@pytest.mark.slow
def test_ten_prompts(smollm2, reference):
    compare(smollm2, reference, 10)
