"""Which of two guesses is taken, and what that is based on."""

import pytest

from specpipe.drafting.fusion import Fusion
from specpipe.drafting.ngram import Evidence, Finding

EVIDENCE = Evidence("ngram", 3, 1, 1)
OTHER = Evidence("ngram", 1, 1, 1)
SAID, FOUND, NEITHER = 5, 6, 7


def found(chance: float, token: int = FOUND, evidence: Evidence = EVIDENCE) -> Finding:
    return Finding(token, chance, evidence)


def test_what_both_say_is_likelier_than_what_either_says() -> None:
    """As the larger of two chances, most of what is all but certain would look doubtful."""
    assert Fusion().agreed(0.6, 0.6, found(0.7)) == pytest.approx(0.88)


@pytest.mark.parametrize(("chance", "other"), [(0.9, 0.3), (0.3, 0.9)])
def test_where_they_differ_the_likelier_counts_and_for_less_than_alone(chance, other) -> None:
    """Both at their full chance would come to more than one."""
    takes_found, taken = Fusion().disputed(chance, chance, found(other))
    assert takes_found == (other > chance)
    assert 0.6 < taken < 0.9


def test_what_a_look_up_is_worth_is_learned_where_the_model_contradicts_it() -> None:
    """Right nine times in ten, but each time with the model: against it, it would be wrong."""
    fusion, sure = Fusion(), found(0.9)
    assert fusion.disputed(0.6, 0.6, sure)[0]
    for _ in range(90):
        fusion.note(0.6, found(0.9, SAID), SAID, SAID)
    assert fusion.disputed(0.6, 0.6, sure)[0], "nothing was heard of disputes yet"
    for _ in range(10):
        fusion.note(0.6, sure, SAID, SAID)
    takes_found, chance = fusion.disputed(0.6, 0.6, sure)
    assert not takes_found
    assert chance > 0.5
    assert fusion.agreed(0.6, 0.6, found(0.9, SAID)) > 0.98
    assert fusion.disputed(0.6, 0.6, found(0.9, FOUND, OTHER))[0], "evidence of another kind"


def test_of_equals_the_models_guess_is_taken() -> None:
    """Chosen by what is chance in two estimates, look-ups would win as often as not."""
    fusion = Fusion()
    for _ in range(200):
        for token in (SAID, FOUND):
            fusion.note(0.5, found(0.5), SAID, token)
    takes_found, chance = fusion.disputed(0.5, 0.5, found(0.5))
    assert not takes_found
    assert chance == pytest.approx(0.5, abs=0.02)


def test_where_neither_is_right_both_lose() -> None:
    fusion = Fusion()
    for _ in range(200):
        fusion.note(0.5, found(0.5), SAID, NEITHER)
    assert fusion.disputed(0.5, 0.5, found(0.5))[1] < 0.1
