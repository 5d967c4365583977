"""Whether the target waits for the draft's word: what it brings, against the time that it takes."""

import pytest

from specpipe.awaiting import Awaiting
from specpipe.elastic import Elastic
from specpipe.policy import Verified

PASS_S, GAP_S, WORD_S = 5e-3, 0.4e-3, 0.8e-3


def verified(accepted: int, *, awaited: bool, row: float = 1e-3) -> Verified:
    """A pass; one that waited for a word has a guess in its block."""
    waited = GAP_S + WORD_S * awaited
    return Verified(
        0, int(awaited), accepted, PASS_S + row * awaited, alone=True, waited=waited,
        awaited=awaited,
    )  # fmt: skip


def waits(rule: Awaiting, passes: int, right_every: int) -> list[bool]:
    """Which passes waited, of a text in which every so many-th looked-up guess is right."""
    chosen = []
    for turn in range(passes):
        rule.note(verified(int(turn % right_every == 0) * rule.now, awaited=rule.now), PASS_S)
        # Now and then a guess stands, and the next pass need not wait.
        rule.note(verified(0, awaited=False), PASS_S)
        chosen.append(rule.now)
    return chosen


@pytest.mark.parametrize(("right_every", "pays"), [(1, True), (2, True), (5, False), (1000, False)])
def test_a_word_is_waited_for_where_it_pays(right_every: int, pays: bool) -> None:
    """In a new text look-ups are wrong, and each costs a small target a sixth of a pass."""
    chosen = waits(Awaiting(), 600, right_every)
    assert (sum(chosen) == 600) == pays
    if not pays:
        assert sum(chosen[300:]) < 40, "it is tried ever more rarely"
        assert any(chosen[300:]), "but it is"


def test_a_text_that_begins_to_repeat_itself_is_noticed() -> None:
    """What was given up once would be lost for every later request."""
    rule = Awaiting()
    waits(rule, 200, 1000)
    chosen = waits(rule, 400, 1)
    assert all(chosen[-100:])
    assert False in waits(rule, 30, 1000), "and given up soon"


def test_several_sequences_wait_as_ever() -> None:
    """What one sequence learned for itself says nothing of a pass that others share."""
    rule = Elastic()
    for _ in range(40):
        rule.verified(verified(0, awaited=True))
    assert not rule.awaits_word(1)
    assert rule.awaits_word(2)
