"""A draft that shares its embeddings with its target: found, checked, and run."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from specpipe.config import Config
from specpipe.errors import UserError
from specpipe.models.cuda.decoder import CudaDecoder
from specpipe.models.loader import load_model
from specpipe.models.source import open_model
from specpipe.models.summary import show
from specpipe.models.weights import DecoderWeights
from specpipe.pair import ModelPair
from tests.unit.training.chat_model import IDS, make_chat_model, make_draft


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def pair(request, tmp_path):
    """A target, and a draft of all its layers: as much alike as can be."""
    target = make_chat_model(tmp_path / "target", tie_word_embeddings=request.param)
    return target, make_draft(tmp_path / "draft", target)


def logits(model, tokens):
    slot = model.open()
    rows = model.forward(slot, tokens, len(tokens))
    model.close(slot)
    return rows


def test_it_says_what_its_target_says_of_the_tokens_that_it_covers(pair) -> None:
    """An output taken for another token's, or embeddings of another model, are never right."""
    target, draft = (load_model(files.weights, dtype="float32") for files in pair)
    tokens = [5, 9, 1, 130, 9]
    theirs, ours = logits(target, tokens), logits(draft, tokens)
    assert draft.context_length == 256
    covered = sorted({*IDS, *tokens})
    np.testing.assert_allclose(ours[:, covered], theirs[:, covered], atol=0.02)
    assert np.isneginf(np.delete(ours, covered, 1)).all()


def test_the_torch_decoder_agrees(pair) -> None:
    """Both ways of running a draft guess the same."""
    source = open_model(pair[1].weights)
    device = torch.device("cpu")
    other = CudaDecoder(source.config, DecoderWeights(source), dtype="float32", device=device)
    tokens = [5, 9, 1, 130, 9]
    ours = logits(load_model(pair[1].weights, dtype="float32"), tokens)
    theirs = logits(other, tokens)
    np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(theirs))
    finite = np.isfinite(ours)
    np.testing.assert_allclose(ours[finite], theirs[finite], atol=1e-4)


def test_it_shares_its_targets_vocabulary(pair, tmp_path) -> None:
    """No second copy of a tokenizer that could be another one."""
    config = Config().override(
        models_dir=str(tmp_path), target={"model": "target"}, draft={"model": "draft"}
    )
    found = ModelPair.find(config)
    assert found.draft_context_length == 256
    assert found.context_length == 512
    assert "token_embd.weight" not in load_file(tmp_path / "draft" / "model.safetensors")
    assert show("draft", tmp_path).layers == 4


def test_other_embeddings_than_it_was_trained_with_are_refused(pair, tmp_path) -> None:
    """It would run, and guess nonsense."""
    weights = load_file(tmp_path / "target" / "model.safetensors")
    weights["model.embed_tokens.weight"][0] += 1
    save_file(weights, tmp_path / "target" / "model.safetensors")
    with pytest.raises(UserError, match="was made for other weights than those in"):
        load_model(pair[1].weights)


def test_a_target_that_is_not_there_is_named(pair, tmp_path) -> None:
    """With the place where it is looked for."""
    (tmp_path / "target").rename(tmp_path / "gone")
    with pytest.raises(
        UserError, match=r"a draft for the target 'target', which is not at .*target"
    ):
        open_model(pair[1].weights)


def test_a_target_elsewhere_is_found_by_its_path(tmp_path) -> None:
    """Models need not be installed to have drafts."""
    target = make_chat_model(tmp_path / "a" / "target")
    (tmp_path / "b").mkdir()
    draft = make_draft(tmp_path / "b" / "draft", target, named=str(target.weights))
    assert open_model(draft.weights).config.head_ids == IDS


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"head_ids": [3, 2]}, "head_ids does not rise"),
        ({"head_ids": [-1, 2]}, "head_ids does not rise"),
        ({"head_ids": [0, 264]}, "below 264"),
        ({"head_ids": []}, "no list of token ids"),
        ({"head_ids": [1, True]}, "no list of token ids"),
        ({"head_ids": [1, 2]}, r"tensor head.weight has shape \[87, 32\], expected \[2, 32\]"),
        ({"num_hidden_layers": 5}, "tensor blk.4.* is missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"num_hidden_layers": 3}, r"a tensor blk.3"),
        ({"max_position_embeddings": "x"}, "max_position_embeddings = 'x'"),
        ({"target": 3}, "for the target 3"),
        ({"target": "draft"}, "which is a draft itself"),
        ({"fingerprint": "0"}, "made for other weights"),
    ],
)
def test_broken_settings_are_refused(tmp_path, changes, what) -> None:
    """Each by a line that says what is wrong."""
    target = make_chat_model(tmp_path / "target")
    draft = make_draft(tmp_path / "draft", target)
    path = draft.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=what):
        load_model(draft.weights)
