"""Two models as one vocabulary: what doesn't belong together is found before anything starts."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from specpipe.config import Config
from specpipe.errors import UserError
from specpipe.pair import ModelPair
from tests.unit.test_hf_vocabulary import byte_level, save


def make(folder, vocab_size=300, **config):
    """A random llama with a tokenizer of 262 tokens."""
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "max_position_embeddings": 128} | config
    config = AutoConfig.for_model("llama", vocab_size=vocab_size, **shape)
    config.bos_token_id = config.eos_token_id = None
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    save(folder, byte_level())


def find(folder, draft="none", **target):
    return ModelPair.find(
        Config().override(
            models_dir=str(folder), target={"model": "target"} | target, draft={"model": draft}
        )
    )


def test_folders_of_differently_padded_vocabularies_fit(tmp_path) -> None:
    """Sizes of one family pad their weights to different round numbers."""
    make(tmp_path / "target")
    make(tmp_path / "draft", vocab_size=280, max_position_embeddings=64)
    pair = find(tmp_path, "draft")
    assert pair.tokenizer.used_size == 262
    assert (pair.context_length, pair.draft_context_length) == (128, 64)
    assert pair.encode("ab", raw=True) == byte_level().encode("ab").ids


@pytest.mark.parametrize("backend", ["specpipe", "transformers"])
def test_a_tokenizer_of_more_tokens_than_the_weights_know_is_refused(tmp_path, backend) -> None:
    """Its ids would be fed beyond the embedding."""
    make(tmp_path / "target", vocab_size=261)
    with pytest.raises(UserError, match="tokenizer of target has 262 tokens and its weights 261"):
        find(tmp_path, backend=backend)


def test_the_backend_takes_other_architectures_but_no_gguf(tmp_path, smollm2) -> None:
    make(tmp_path / "target")
    path = tmp_path / "target" / "config.json"
    config = json.loads(path.read_text()) | {"model_type": "another"}
    path.write_text(json.dumps(config))
    assert find(tmp_path, backend="transformers").context_length == 128
    with pytest.raises(UserError, match="'another', which specpipe can't run by itself"):
        find(tmp_path)
    with pytest.raises(UserError, match="the backend transformers reads folders"):
        find(tmp_path, model=str(smollm2.weights), backend="transformers")
    del config["max_position_embeddings"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="how many tokens its context holds"):
        find(tmp_path, backend="transformers")


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(UserError, match="backend is 'vllm': choose one of specpipe, transformers"):
        Config().override(target={"backend": "vllm"})


@pytest.mark.parametrize("backend", ["specpipe", "transformers"])
def test_a_context_beyond_belief_is_refused_before_anything_starts(tmp_path, backend) -> None:
    """It sizes tables and caches, and has to travel in messages."""
    make(tmp_path / "target")
    path = tmp_path / "target" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 2**31}))
    with pytest.raises(UserError, match="max_position_embeddings = 2147483648"):
        find(tmp_path, backend=backend)
