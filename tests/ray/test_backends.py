"""Folders of Hugging Face in a pipeline: transformers runs the target, our decoder the draft."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from specpipe.actors import Config, Pipeline, SamplingParams
from specpipe.errors import UserError

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "vocab_size": 288,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 0.2,
}
PROMPTS = ["The sky", "def f(x):", "Größe"]


def make(folder, family):
    """A random model whose tokens are the 256 bytes; the other ids are padding."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **SHAPE), dtype=torch.float32
    )
    model.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.save(str(folder / "tokenizer.json"))
    return model.eval()


@pytest.fixture
def folders(our_ray, tmp_path):
    judge = make(tmp_path / "target", "gpt_neox")
    make(tmp_path / "draft", "llama")
    return judge, {"models_dir": str(tmp_path)}


def written_by(judge, prompt, count):
    """What transformers writes by itself; ids without a token are barred here too."""
    settings = GenerationConfig(
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        suppress_tokens=list(range(256, SHAPE["vocab_size"])),
    )
    ids = torch.tensor([prompt])
    result = judge.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return result[0, len(prompt) :].tolist()


def test_the_pipeline_writes_what_transformers_writes(folders):
    """Any architecture goes the same way as our own: prompts, blocks, verdicts, rollbacks."""
    judge, settings = folders
    config = Config().override(
        **settings,
        target={"model": "target", "backend": "transformers"},
        draft={"model": "draft"},
        pipeline={"policy": "take_all"},
    )
    with Pipeline.launch(config) as pipeline:
        completions = pipeline.generate(PROMPTS, SamplingParams(max_tokens=40))
        prompts = [pipeline.pair.encode(prompt) for prompt in PROMPTS]
    for prompt, completion in zip(prompts, completions, strict=True):
        assert list(completion.token_ids) == written_by(judge, prompt, 40)
    assert sum(completion.metrics.rollbacks for completion in completions) > 0


def test_what_our_decoder_cannot_run_points_to_the_backend(folders):
    _, settings = folders
    config = Config().override(**settings, target={"model": "target"}, draft={"model": "none"})
    with pytest.raises(UserError, match=r"'gpt_neox', .* or the backend `transformers`"):
        Pipeline.launch(config)
