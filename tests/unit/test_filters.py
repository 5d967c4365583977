"""Biases, penalties and filters, held against transformers and OpenAI's formulas."""

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specpipe.filters import Law, adjusted, filtered, likeliest
from specpipe.models.interface import Logits
from tests.toys import sampling

TOKENS = (3, 8, 8, 1, 40, 3, 3)
ROWS = [
    np.random.default_rng(seed).normal(scale=scale, size=50).astype(np.float32)
    for seed in range(5)
    for scale in (0.5, 3.0)
]


def theirs(row: Logits, **options: float) -> np.ndarray:
    """The scores by transformers, in the order in which its `generate` applies them."""
    makers = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    processors = LogitsProcessorList(
        [make(options[name]) for name, make in makers.items() if name in options]
    )
    scores = processors(torch.tensor([TOKENS]), torch.from_numpy(row.copy())[None].double())
    return torch.softmax(scores, -1)[0].numpy()


def ours(row: Logits, **options: float) -> np.ndarray:
    params = sampling(**({"temperature": 1.0, "prompt_length": 4} | options))
    law = filtered(adjusted(row, params, TOKENS, len(TOKENS)), params)
    chances = np.zeros(len(row))
    chances[slice(None) if law.ids is None else law.ids] = law.chances()
    return chances


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_k": 1},
        {"top_k": 500},
        {"top_p": 0.9},
        {"top_p": 0.5},
        {"top_p": 1e-9},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.2},
        {"temperature": 1.8, "top_k": 30, "top_p": 0.95},
    ],
    ids=str,
)
def test_laws_are_those_of_transformers(options: dict[str, float]) -> None:
    """A filter off by one token, on the wrong side of the temperature, or in another order."""
    for row in ROWS:
        np.testing.assert_allclose(ours(row, **options), theirs(row, **options), atol=1e-6)


@pytest.mark.parametrize("frequency", [0.0, 0.5, -1.0])
@pytest.mark.parametrize("presence", [0.0, 1.5, -0.25])
def test_penalties_count_the_answer_alone(frequency: float, presence: float) -> None:
    """A prompt that counts too would punish an answer for quoting it; the reference is OpenAI's
    formula: mu - count * frequency - (count > 0) * presence."""
    row = ROWS[0]
    expected = row.copy()
    for token, count in {40: 1, 3: 2}.items():
        expected[token] -= count * frequency + presence
    params = sampling(frequency_penalty=frequency, presence_penalty=presence, prompt_length=4)
    np.testing.assert_allclose(adjusted(row, params, TOKENS, len(TOKENS)), expected, rtol=1e-6)


def test_penalties_see_nothing_from_the_position_on() -> None:
    """The rest of a block, which plain decoding would not have written yet."""
    params = sampling(repetition_penalty=2.0, frequency_penalty=1.0, prompt_length=1)
    for position in range(1, len(TOKENS)):
        alone = adjusted(ROWS[0], params, TOKENS[:position], position)
        assert (adjusted(ROWS[0], params, TOKENS, position) == alone).all()


def test_penalties_without_the_tokens_before_are_refused() -> None:
    """A caller that forgets to hand them over would silently get none."""
    with pytest.raises(AssertionError, match="every token"):
        adjusted(ROWS[0], sampling(repetition_penalty=2.0), (), 3)


def test_biases_come_before_penalties_and_beyond_the_vocabulary_add_nothing() -> None:
    """A draft whose vocabulary is shorter than the target's; and the order is that of vLLM."""
    params = sampling(bias_ids=(3, 7, 49, 50, 99), bias_values=(5.0, -2.0, 1.0, 9.0, 9.0))
    expected = ROWS[1].copy()
    expected[[3, 7, 49]] += np.array([5.0, -2.0, 1.0], dtype=np.float32)
    assert (adjusted(ROWS[1], params, TOKENS, len(TOKENS)) == expected).all()
    both = sampling(bias_ids=(3,), bias_values=(5.0,), repetition_penalty=2.0)
    expected = ROWS[1][3] + np.float32(5)
    assert adjusted(ROWS[1], both, TOKENS, 7)[3] == pytest.approx(expected / 2)


def test_nothing_asked_changes_nothing() -> None:
    """A copy of every row costs more than choosing from it."""
    assert adjusted(ROWS[0], sampling(), TOKENS, 7) is ROWS[0]


@pytest.mark.parametrize("top_p", [0.3, 0.5, 0.75])
def test_of_equals_the_lowest_ids_are_in_the_nucleus(top_p: float) -> None:
    """A sort that is not stable: two machines, two outputs."""
    row = np.zeros(8, dtype=np.float32)
    law = filtered(row, sampling(1.0, top_p=top_p))
    assert law.ids is not None
    assert law.ids.tolist() == list(range(int(np.ceil(8 * top_p))))


def test_what_ties_with_the_last_of_k_stays() -> None:
    """As in transformers, which compares with the k-th logit."""
    row = np.array([1, 3, 2, 2, 2, 0], dtype=np.float32)
    law = filtered(row, sampling(1.0, top_k=2))
    assert law.ids is not None
    assert law.ids.tolist() == [1, 2, 3, 4]


def test_nucleus_of_a_real_vocabulary_is_that_of_a_full_sort() -> None:
    """The short cut past the unlikely tokens must never leave one out."""
    rng = np.random.default_rng(2)
    for scale in (0.01, 1.0, 4.0):
        row = rng.normal(scale=scale, size=50_000).astype(np.float32)
        for top_p in (0.1, 0.9, 0.999):
            law = filtered(row, sampling(1.0, top_p=top_p))
            whole = filtered(row, sampling(1.0))
            order = np.argsort(-whole.scores, kind="stable")
            before = np.cumsum(whole.chances()[order]) - whole.chances()[order]
            assert law.ids is not None
            kept = set(order[before < top_p].tolist()) ^ set(law.ids.tolist())
            assert len(kept) <= 1, "more than rounding at the very edge"


def test_likeliest_takes_exactly_so_many() -> None:
    """A law with more tokens than messages carry; of equals the lowest ids."""
    law = filtered(np.array([1, 3, 2, 2, 2, 0], dtype=np.float32), sampling(1.0))
    for count, ids in ((1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 3, 4])):
        kept = likeliest(law, count)
        assert kept.ids is not None
        assert kept.ids.tolist() == ids
    assert likeliest(law, 6) is law


def test_tokens_whose_chance_underflows_are_no_part_of_a_law_that_travels() -> None:
    """A chance of 0 is refused on the wire: at a low temperature every guess would be lost."""
    scores = np.array([0.0, -800.0, -1.0, -5000.0])
    kept = likeliest(Law(None, scores), 64)
    assert kept.ids is not None
    assert kept.ids.tolist() == [0, 2]
    assert (kept.chances() > 0).all()
