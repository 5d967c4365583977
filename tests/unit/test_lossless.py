"""What counts as the same answer, and what is an excuse for another one."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from specpipe.lossless import Answer, Outcome, Records, compare, key_of
from specpipe.models.interface import Logits
from specpipe.sampling import Sampling
from tests.toys import Law, TargetLaw, ToyModel, decode_plain, sampling

PROMPT = [1, 2, 3]
LAW = TargetLaw(5)
NOISY = sampling(1.0, seed=9)
LENGTH = 8


class RowsMatter(ToyModel):
    """A model whose logits move a little when rows are computed together, as careless kernels do.

    Attributes:
        moved: added to one token's logit, in passes of several rows.
    """

    def __init__(self, law: Law, token: int, moved: float) -> None:
        super().__init__(law)
        self.token, self.moved = token, moved

    def forward(
        self,
        slot: int,
        tokens: Sequence[int],
        rows: int,
        interrupted: Callable[[], bool] | None = None,
    ) -> Logits | None:
        logits = super().forward(slot, tokens, rows, interrupted)
        if logits is not None and rows > 1:
            logits = logits.copy()
            logits[:, self.token] += np.float32(self.moved)
        return logits


def near_tie(at: int, token: int, gap: float) -> Law:
    """LAW, but in the answer's place `at`, where `token` comes short of the greedy one by `gap`."""

    def law(ids: Sequence[int]) -> Logits:
        row = LAW(ids)
        if len(ids) == len(PROMPT) + at:
            row = row.copy()
            row[token] = row.max() - np.float32(gap)
        return row

    return law


def answer(tokens: Sequence[int], blocks: list[list[int]] | None = None) -> Answer:
    return Answer(list(tokens), "text", "length", blocks or [])


def outcome(
    alone: Answer, pipeline: Answer, params: Sampling, model: ToyModel | None = None
) -> Outcome:
    return compare(alone, pipeline, PROMPT, params, lambda: model or ToyModel(LAW))


def test_same_answers_are_identical_and_load_no_model() -> None:
    """Loading takes seconds, and is hardly ever needed."""
    tokens, _ = decode_plain(LAW, PROMPT, NOISY, LENGTH)

    def load() -> ToyModel:
        raise AssertionError("loaded for nothing")

    assert compare(answer(tokens), answer(tokens), PROMPT, NOISY, load) == Outcome("identical")


@pytest.mark.parametrize("what", ["text", "finish_reason", "token_ids"])
def test_other_end_or_text_is_a_difference(what: str) -> None:
    """Ids that agree as far as they go are not the whole answer."""
    tokens, _ = decode_plain(LAW, PROMPT, NOISY, LENGTH)
    other = {
        "text": Answer(tokens, "text!", "length", []),
        "finish_reason": Answer(tokens, "text", "stop", []),
        "token_ids": answer(tokens[:-1]),
    }[what]
    assert outcome(answer(tokens), other, NOISY).fate == "unexplained"


@pytest.mark.parametrize("at", [0, 2, 5])
def test_wrong_token_of_a_sound_model_is_unexplained(at: int) -> None:
    """A bug of the protocol must never pass for rounding."""
    for params in (NOISY, sampling()):
        tokens, _ = decode_plain(LAW, PROMPT, params, LENGTH)
        wrong = [*tokens[:at], (tokens[at] + 1) % 5, *tokens[at + 1 :]]
        blocks = [[0, 0], *([t] for t in wrong[1:])]
        result = outcome(answer(tokens), answer(wrong, blocks), params)
        assert result.fate == "unexplained"
        assert (result.position, result.alone, result.pipeline) == (at, tokens[at], wrong[at])
        assert result.moved == 0


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("inside", [0, 1])
def test_near_tie_that_a_block_tips_is_numeric(at: int, inside: int) -> None:
    """An honest difference: both tokens come back, and the gap is within what the rows moved."""
    greedy, params = decode_plain(LAW, PROMPT, sampling(), LENGTH)[0], sampling()
    token = (greedy[at] + 1) % 5
    law = near_tie(at, token, 1e-5)
    alone, _ = decode_plain(law, PROMPT, params, LENGTH)
    pipeline = [*alone[:at], token, *alone[at + 1 :]]
    start = at - inside
    # Until `start` every pass decides one token; then comes the block that tipped it.
    blocks = [*([] for _ in range(start)), [*pipeline[start:at], alone[at], 0]]
    result = outcome(answer(alone), answer(pipeline, blocks), params, RowsMatter(law, token, 2e-5))
    assert result.fate == "numeric"
    assert result.position == at
    assert result.gap == pytest.approx(1e-5, rel=0.2)
    assert result.moved == pytest.approx(2e-5, rel=0.2)


def test_tie_that_does_not_come_back_is_unexplained() -> None:
    """Another token than the pipeline's, from the very block that it used: not rounding."""
    params = sampling()
    greedy, _ = decode_plain(LAW, PROMPT, params, LENGTH)
    token, third = (greedy[2] + 1) % 5, (greedy[2] + 2) % 5
    law = near_tie(2, token, 1e-5)
    alone, _ = decode_plain(law, PROMPT, params, LENGTH)
    pipeline = [*alone[:2], third, *alone[3:]]
    blocks = [[], [], [alone[2], 0]]
    result = outcome(answer(alone), answer(pipeline, blocks), params, RowsMatter(law, token, 2e-5))
    assert result.fate == "unexplained"


def test_noise_is_part_of_the_score_that_decides() -> None:
    """By logits alone two tokens of different chances never look near, whatever decided them."""
    params = NOISY
    tokens, _ = decode_plain(LAW, PROMPT, params, LENGTH)
    at, model = 2, ToyModel(LAW)
    for token in set(range(1, 5)) - {tokens[at]}:
        wrong = [*tokens[:at], token, *tokens[at + 1 :]]
        result = outcome(answer(tokens), answer(wrong, [[], [], [token]]), params, model)
        row = LAW([*PROMPT, *tokens[:at]])
        assert result.gap is not None
        assert result.gap != pytest.approx(abs(float(row[tokens[at]] - row[token])), rel=1e-3)


# -- records


def test_records_come_back_and_outcomes_end_with_their_run(tmp_path: Path) -> None:
    """A run that is taken up again skips what was compared; a new one compares anew."""
    records, told = Records(tmp_path, {"draft": "a"}), answer([1, 2], [[1], []])
    records.keep_answer("k", told)
    records.keep_outcome("k", Outcome("numeric", 1, 2, 3, 0.5, 0.25))
    again = Records(tmp_path, {"draft": "a"})
    assert again.answer("k") == told
    assert again.outcome("k") == Outcome("numeric", 1, 2, 3, 0.5, 0.25)
    assert Records(tmp_path, {"draft": "b"}).outcome("k") is None
    again.finish()
    assert again.outcome("k") is None
    assert again.answer("k") == told


def test_record_that_is_damaged_counts_as_absent(tmp_path: Path) -> None:
    """A disk that filled up in the middle of a line."""
    records = Records(tmp_path, {})
    records.keep_answer("k", answer([1]))
    (file,) = (tmp_path / "answers").iterdir()
    for text in ("", '{"token_ids": [1', "[1]", '{"token_ids": [1], "surplus": 2}'):
        file.write_text(text)
        assert records.answer("k") is None


def test_key_depends_on_every_part_and_on_no_order() -> None:
    """Another temperature with the same key: yesterday's answers would stand for today's."""
    assert key_of({"a": 1, "b": [1, 2]}) == key_of({"b": [1, 2], "a": 1})
    keys = {key_of(c) for c in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": [1]}, {"a": "1"}, {})}
    assert len(keys) == 6
