"""The draft that comes with specpipe: whole, for the default target, and worth its time."""

import hashlib
from itertools import islice

import numpy as np
import pytest
import torch

from specpipe.bench.peer_models import load_assistant, load_transformers
from specpipe.config import Config
from specpipe.models.interface import DRAFT_DTYPE
from specpipe.models.loader import load_model
from specpipe.models.source import open_model
from specpipe.models.store import read_source
from specpipe.pair import ModelPair
from specpipe.prompts import own_questions
from specpipe.training.evaluation import Task, evaluate, make_drafters
from tests.conftest import SAVED_MODELS


@pytest.fixture(scope="module")
def pair(smollm2) -> ModelPair:
    return ModelPair.find(Config().override(models_dir=str(SAVED_MODELS)))


def test_its_weights_are_those_that_were_made(pair) -> None:
    """A file that was cut short in a checkout, or kept by reference, loads as noise if at all."""
    source = read_source(pair.draft.folder)
    weights = pair.draft.folder / source["file"]
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == source["sha256"]
    assert source["base_sha256"] == read_source(pair.target.folder)["sha256"]
    assert weights.stat().st_size < 60e6
    assert source["licence"] == "Apache-2.0"


def test_it_guesses_what_its_target_says(pair) -> None:
    """A head whose outputs are shifted, or layers in another order, guess nothing right."""
    target = load_model(
        pair.target.weights, num_slots=96, output_size=pair.tokenizer.used_size, context_length=1024
    )
    draft = load_model(
        pair.draft.weights,
        dtype=DRAFT_DTYPE,
        output_size=pair.tokenizer.used_size,
        context_length=1024,
    )
    tasks = [
        Task(pair.encode(each.text), each.category) for each in islice(own_questions(), 0, 24, 6)
    ]
    drafters = make_drafters(draft, 1024)
    stops = pair.tokenizer.stop_token_ids
    *_, judged = evaluate(target, drafters, tasks, stops, temperature=0.0, most=48)
    assert judged is not None
    assert judged.acceptance["model"] > 0.3
    assert judged.acceptance["hybrid"] > judged.acceptance["ngram"]


@pytest.mark.slow
def test_as_a_model_of_transformers_it_says_the_same(pair) -> None:
    """A peer that is assisted by another draft than ours, or by one with its heads turned."""
    draft = load_model(pair.draft.weights, dtype="float32", context_length=64)
    tokens = [5, 9, 1, 130, 9]
    ours = draft.forward(draft.open(), tokens, len(tokens))
    assistant = load_assistant(pair.draft.weights, load_transformers(pair.target.weights))
    with torch.inference_mode():
        theirs = assistant(torch.tensor([tokens])).logits[0].numpy()
    covered = list(open_model(pair.draft.weights).config.head_ids)
    np.testing.assert_allclose(ours[:, covered], theirs[:, covered], atol=1e-3)
