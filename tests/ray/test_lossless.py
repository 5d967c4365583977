"""A pipeline and its target alone, compared as `specpipe verify` does."""

import json

import pytest

from specpipe.actors import Config
from specpipe.actors.lossless import Comparison
from specpipe.pair import ModelPair
from tests.prompts import prompts


@pytest.fixture
def config(our_ray, smollm2, smollm2_pruned):
    return Config().override(
        models_dir=str(smollm2.folder.parent),
        sampling={"max_tokens": 12, "temperature": 0.7, "seed": 0},
        pipeline={"policy": "take_all"},
    )


def test_answer_agrees_and_a_forged_one_is_found_out(config, tmp_path):
    """A comparison that reads both sides from one place, or explains away whatever differs."""
    pair = ModelPair.find(config)
    (prompt,) = (pair.encode(text) for text in prompts(1))
    with Comparison(config, pair, tmp_path) as comparison:
        assert comparison.compare(prompt).fate == "identical"
        comparison.finish()
        for file in (tmp_path / "answers").iterdir():
            answer = json.loads(file.read_text())
            answer["token_ids"][3] += 1
            file.write_text(json.dumps(answer))
        outcome = comparison.compare(prompt)
        assert (outcome.fate, outcome.position) == ("unexplained", 3)
        assert outcome.alone == outcome.pipeline + 1
        assert outcome.moved == 0, "one row and a block have the same bits"
        # Taken up again, the run knows what it found, and does not ask the models anew.
        with Comparison(config, pair, tmp_path) as again:
            assert again.compare(prompt) == outcome
