"""A natural pair of real models, where it was fetched: `specpipe models fetch qwen2.5-coder`."""

import unicodedata

import numpy as np
import pytest
import torch
from tokenizers import normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from specpipe.actors import Config, Pipeline, SamplingParams
from specpipe.models.gguf_file import GGUFFile
from specpipe.models.loader import load_model
from specpipe.tokenizer import Tokenizer, check_pair
from tests.conftest import SAVED_MODELS
from tests.prompts import prompts
from tests.unit.test_tokenizer import TEXTS, user

TARGET, DRAFT = "qwen2.5-coder-1.5b", "qwen2.5-coder-0.5b"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not all((SAVED_MODELS / name).is_dir() for name in (TARGET, DRAFT)),
        reason="specpipe models fetch qwen2.5-coder",
    ),
]


def weights(name):
    (path,) = (SAVED_MODELS / name).glob("*.gguf")
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_gguf(GGUFFile(weights(DRAFT)).metadata)


@pytest.fixture(scope="module")
def reference():
    """transformers' reading of the file, with the normaliser of the model's own tokenizer.json."""
    path = weights(DRAFT)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(tokenizer, reference, text):
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_chats_are_those_of_transformers(tokenizer, reference):
    conversation = [*user("Hi"), {"role": "assistant", "content": "Yes?"}, *user("é 12345")]
    rendered = reference.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=False
    )
    assert tokenizer.encode_chat(conversation) == reference.encode(
        rendered, add_special_tokens=False
    )


def test_both_have_one_vocabulary_and_the_same_padding(tokenizer):
    check_pair(Tokenizer.from_gguf(GGUFFile(weights(TARGET)).metadata), tokenizer)
    assert (tokenizer.used_size, tokenizer.vocab_size) == (151665, 151936)


def test_logits_are_those_of_transformers(tokenizer):
    """Reads the file with transformers' own code for GGUF: none of ours has a part in it."""
    path = weights(DRAFT)
    ids = tokenizer.encode_chat(user("Write a Python function that adds two numbers."))
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
        expected = theirs.eval()(torch.tensor([ids])).logits[0].numpy()
        del theirs
    model = load_model(path, dtype="float32", context_length=256)
    slot = model.open()
    got = model.forward(slot, ids, len(ids))
    # Rotary angles are float32 there and float64 here; logits are up to 30.
    np.testing.assert_allclose(got, expected, atol=2e-3)


def test_bits_do_not_depend_on_how_tokens_are_fed(tokenizer):
    ids = tokenizer.encode_chat(user("Write a Python function that adds two numbers."))
    model = load_model(weights(DRAFT), context_length=256, output_size=tokenizer.used_size)
    slot = model.open()
    expected = model.forward(slot, ids, len(ids))
    assert expected.shape[1] == tokenizer.used_size
    for rows in (1, 2, 3, 5, 8):
        model.truncate(slot, 10)
        got = model.forward(slot, ids[10 : 10 + rows], rows)
        assert np.array_equal(got, expected[10 : 10 + rows]), rows


def test_with_the_draft_the_target_writes_what_it_writes_alone():
    answers = []
    for draft in (DRAFT, "none"):
        config = Config().override(
            models_dir=str(SAVED_MODELS),
            target={"model": TARGET},
            draft={"model": draft},
            pipeline={"policy": "take_all"},
        )
        with Pipeline.launch(config) as pipeline:
            answers.append(pipeline.generate(prompts(2), SamplingParams(max_tokens=48)))
    with_draft, alone = answers
    assert [each.token_ids for each in with_draft] == [each.token_ids for each in alone]
    assert sum(each.metrics.accepted for each in with_draft) > 20
