"""Which draft to use: the simulator's word on what was recorded."""

import random

import pytest

from specpipe.bench import advice
from specpipe.bench.advice import Alone, Tried, advise, expect, figures, table
from specpipe.config import Config
from specpipe.recording import Recording


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """How exactly it is simulated is not the matter here."""
    monkeypatch.setattr(advice, "_TOKENS", 1400)


CONFIG = Config().override(draft={"device": "cpu:0"}, target={"device": "cpu:1"})
PASSES = ((1, 0.020), (2, 0.021), (9, 0.030))


def tried(step: float, chance: float, name: str = "small") -> Tried:
    draw = random.Random(3)
    guesses = tuple((chance, draw.random() < chance) for _ in range(400))
    config = CONFIG.override(draft={"model": name})
    return expect(config, Recording(guesses, step, PASSES))


def test_a_good_draft_is_expected_to_pay_and_a_bad_one_is_not() -> None:
    """A draft is chosen by its acceptance alone, or by its speed alone."""
    good, slow, bad = tried(0.005, 0.85), tried(0.018, 0.9, "slow"), tried(0.004, 0.1, "bad")
    assert good.c == 4
    assert good.expected > 1.5 / 0.02
    assert good.expected > max(slow.expected, bad.expected)
    alone = [Alone("cpu:1", 50.0), Alone("cpu:0-1", 60.0)]
    line = advise([bad, good, slow], alone)
    assert line.startswith("Use small on cpu:0 with the target on cpu:1: about")
    assert "of the target alone on cpu:0-1" in line
    assert figures([bad, good], alone)["pairs"][0]["draft"] == "small"
    assert "| none" in table([good], alone)


def test_no_draft_is_advised_where_none_pays() -> None:
    """The pair is compared with half of the cores, and wins."""
    line = advise([tried(0.004, 0.1)], [Alone("cpu:1", 50.0), Alone("cpu:0-1", 95.0)])
    assert line.startswith("Use no draft here")
    assert "95.0 tokens/s of the target alone on cpu:0-1" in line
