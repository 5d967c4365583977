"""The plain rules: what each sends, when it waits, how far it lets the draft run."""

import pytest

from specpipe.dispatch import Pearl, Serial, TakeAll, make_policy
from specpipe.elastic import Elastic
from specpipe.errors import UserError
from specpipe.policy import Decision, Situation


def situation(waiting: int, *, may_wait: bool = True, fresh: bool = False, largest: int = 50):
    return Situation([0.5] * waiting, largest, may_wait, fresh)


@pytest.mark.parametrize(
    ("waiting", "may_wait", "expected"),
    [
        (0, True, Decision(None, 3)),
        (2, True, Decision(None, 1)),
        (3, True, Decision(3, 0)),
        (2, False, Decision(2, 0)),  # the draft can't go on: what there is must do
        (5, True, Decision(3, 0)),
    ],
)
def test_serial_drafts_a_whole_block_and_rests(waiting, may_wait, expected):
    """A draft that runs on while its block is verified would not be the serial baseline."""
    assert Serial(3).decide(situation(waiting, may_wait=may_wait)) == expected


def test_serial_of_nothing_is_the_target_alone():
    """The reference of all speedups must not draft at all."""
    assert Serial(0).decide(situation(0)) == Decision(0, 0)


def test_pearl_verifies_the_first_token_while_the_others_are_drafted():
    """Waiting after a rollback would make it serial; never waiting would make it take_all."""
    rule = Pearl(4)
    assert rule.decide(situation(0, fresh=True)) == Decision(0, 4)
    assert rule.decide(situation(1)) == Decision(None, 2)
    assert rule.decide(situation(3)) == Decision(3, 4)
    assert rule.decide(situation(1, may_wait=False)) == Decision(1, 4)


def test_take_all_waits_for_one_token_only():
    assert TakeAll().decide(situation(0)) == Decision(None)
    assert TakeAll().decide(situation(7, largest=5)) == Decision(5)
    assert TakeAll().decide(situation(0, may_wait=False)) == Decision(0)


def test_policies_have_names():
    assert isinstance(make_policy("elastic"), Elastic)
    assert isinstance(make_policy("take_all"), TakeAll)
    assert make_policy("serial:2").decide(situation(0)) == Decision(None, 2)
    assert make_policy("pearl:2").decide(situation(0, fresh=True)) == Decision(0, 2)


@pytest.mark.parametrize(
    "name", ["oracle", "", "Elastic", "serial", "serial:", "serial:x", "serial:-1", "serial:99999"]
)
def test_an_unknown_policy_is_refused_by_name(name):
    """`oracle` above all: outside of the simulator nobody knows a token's fate."""
    with pytest.raises(UserError, match="polic") as error:
        make_policy(name)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("name", ["pearl:0", "elastic:3", "take_all:1"])
def test_a_length_where_none_belongs_is_refused(name):
    with pytest.raises(UserError, match=name):
        make_policy(name)
