"""A head for part of the vocabulary: what it covers is right, what it doesn't can't be guessed."""

import numpy as np
import pytest

from specpipe.drafting.drafter import Sources
from specpipe.models import partial_head
from specpipe.models.loader import load_model
from specpipe.models.partial_head import MOST_SEEN, SeenTokens, spread
from specpipe.sampler import Sampler
from specpipe.workers.target import Target
from tests.toys import sampling

COVERED = 40


def forward(model, tokens):
    slot = model.open()
    logits = model.forward(slot, tokens, 1)
    model.close(slot)
    return logits[0]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_covered_and_seen_tokens_have_the_whole_heads_logits(tiny_gguf, dtype) -> None:
    """A seen token's row without the norm's weight, or at another id, is guessed at random."""
    path = tiny_gguf("draft.gguf")
    whole = load_model(path, dtype=dtype)
    partial = load_model(path, dtype=dtype, head_tokens=COVERED, kept_tokens=[COVERED + 3])
    last = whole.vocab_size - 1
    tokens = [1, last, COVERED + 9, 2]
    expected, found = forward(whole, tokens), forward(partial, tokens)
    covered = [*range(COVERED), COVERED + 3, COVERED + 9, last]
    np.testing.assert_allclose(found[covered], expected[covered], atol=2e-3)
    others = np.setdiff1d(np.arange(whole.vocab_size), covered)
    assert len(others)
    assert np.isneginf(found[others]).all()


@pytest.mark.parametrize(
    "params",
    [
        sampling(),
        sampling(1.0),
        sampling(0.7, top_k=5, top_p=0.9, min_p=0.01),
        sampling(1.0, acceptance="rejection"),
        sampling(1.0, acceptance="rejection", top_p=0.8),
    ],
)
def test_without_columns_for_the_others_the_guesses_are_the_same(tiny_gguf, params) -> None:
    """A column taken for a token's id, or noise of the column instead of the token."""
    model = load_model(tiny_gguf("draft.gguf"), head_tokens=COVERED, narrow=True)
    slot, sampler = model.open(), Sampler(params)
    last = model.vocab_size - 1
    logits = model.forward(slot, [1, last, COVERED + 9, 2, COVERED + 1], 5)
    ids = model.output_ids
    assert ids.tolist() == [*range(COVERED), COVERED + 1, COVERED + 9, last]
    logits[:, COVERED:] += 2  # so that they are guessed, too
    guessed = set()
    for position in range(60):
        row = logits[position % 5]
        guess = sampler.guess(row, position, ids=ids)
        whole = sampler.guess(spread(row[None], ids, last + 1)[0], position)
        assert guess.token == whole.token
        assert guess.confidence == pytest.approx(whole.confidence)
        assert (guess.law is None) == (whole.law is None)
        if guess.law:
            assert guess.law.ids == whole.law.ids
            assert guess.law.chances == pytest.approx(whole.law.chances)
        guessed.add(guess.token)
    assert params.greedy or not guessed <= set(range(COVERED))


def test_a_target_has_a_column_for_every_token(tiny_gguf) -> None:
    """A draft that writes alone, as in the benchmark: it would say the columns' numbers."""
    path = tiny_gguf("draft.gguf")
    model = load_model(path, head_tokens=COVERED)
    assert model.output_ids is None
    assert forward(model, [1, 2]).shape == (model.vocab_size,)
    Target(model, 1)
    with pytest.raises(ValueError, match="column"):
        Target(load_model(path, head_tokens=COVERED, narrow=True), 1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_biases_and_penalties_meet_the_tokens_that_they_are_for(tiny_gguf, temperature) -> None:
    """The column of that number instead: another token is favoured, or none."""
    model = load_model(tiny_gguf("draft.gguf"), head_tokens=COVERED, narrow=True)
    text, favoured = [1, COVERED + 9, COVERED + 20, 2], COVERED + 20
    params = sampling(temperature, bias_ids=(favoured,), bias_values=(80.0,))
    drafter = Sources(model).open(params, text)
    proposal = drafter.compute(text, len(text))
    assert proposal.guess.token == favoured


@pytest.mark.parametrize("acceptance", ["coupled", "rejection"])
def test_what_is_not_covered_is_never_guessed(tiny_gguf, acceptance) -> None:
    """A chance of zero must be none: not a logarithm of it, not an entry of a law that travels."""
    model = load_model(tiny_gguf("draft.gguf"), head_tokens=COVERED)
    logits = forward(model, [1, 2])
    for temperature in (0.0, 1.0, 8.0):
        params = sampling(temperature, acceptance=acceptance, repetition_penalty=1.3)
        sampler = Sampler(params)
        for position in range(2, 60):
            guess = sampler.guess(logits, position, [1] * position)
            assert guess.token < COVERED
            assert 0 < guess.confidence <= 1
            if guess.law:
                assert all(chance > 0 for chance in guess.law.chances)
                assert max(guess.law.ids) < COVERED


def test_the_oldest_seen_tokens_make_room() -> None:
    """Memory that grows with the text, or a place that two tokens share."""
    seen = SeenTokens(covered=np.arange(16), size=MOST_SEEN + 500, always=[16])
    places = dict(seen.see(range(17, MOST_SEEN + 400)))
    assert len(seen.ids) == len(set(seen.ids)) == MOST_SEEN
    assert 16 in seen.ids, "kept in any case"
    assert 17 not in seen.ids
    assert MOST_SEEN + 399 in seen.ids
    assert MOST_SEEN + 400 not in seen.ids
    assert all(seen.ids[places[token]] == token for token in seen.ids)
    assert not dict(seen.see([0, 15, 16, MOST_SEEN + 399, MOST_SEEN + 500])), "none is needed"


def test_a_place_that_changes_hands_has_the_new_tokens_logits(tiny_gguf, monkeypatch) -> None:
    """Or what is guessed for a token is another one's chance."""
    monkeypatch.setattr(partial_head, "MOST_SEEN", 3)
    path = tiny_gguf("draft.gguf")
    whole = load_model(path, dtype="float32")
    partial = load_model(path, dtype="float32", head_tokens=COVERED, kept_tokens=[COVERED])
    tokens = [*range(COVERED + 1, COVERED + 8), 1]
    expected, found = forward(whole, tokens), forward(partial, tokens)
    kept = [*range(COVERED + 1), COVERED + 6, COVERED + 7]
    np.testing.assert_allclose(found[kept], expected[kept], atol=1e-5)
    assert np.isfinite(found).sum() == len(kept)
