"""On which cores the coordinator runs."""

import pytest

from specpipe.actors.nodes import Layout, Node, Site
from specpipe.config import Config
from specpipe.devices import Device, Placement
from specpipe.errors import UserError

HERE = Site(None, (0, 1, 2), 0)
THERE = Site(Node("id", "10.0.0.1", frozenset(), {}), (0, 1, 2), 0)
DRAFT, TARGET, ANYWHERE = Device("cpu", (0,)), Device("cpu", (1, 2)), Device("cpu")
AUTO = Device("auto")


def layout(draft: Device | None, target: Device, hub: Device = AUTO, far: str = "") -> Layout:
    sites = {role: THERE if role == far else HERE for role in ("draft", "target")}
    return Layout(sites, Placement(draft, target), draft_computes=True, hub=hub)


@pytest.mark.parametrize(
    ("found", "cores"),
    [
        (layout(DRAFT, TARGET), (0, 1, 2)),
        (layout(None, TARGET), (1, 2)),
        (layout(DRAFT, TARGET, far="target"), (0,)),
        (layout(ANYWHERE, ANYWHERE), ()),
        (layout(DRAFT, TARGET, hub=Device("cpu", (2,))), (2,)),
        (layout(DRAFT, TARGET, hub=ANYWHERE), ()),
    ],
    ids=["both", "no draft", "target elsewhere", "unpinned", "as asked", "asked to be unpinned"],
)
def test_the_coordinator_has_the_cores_of_the_models_here(
    found: Layout, cores: tuple[int, ...]
) -> None:
    """On the target's alone each verdict would wake it in the middle of the next pass."""
    assert found.hub_cores == cores


@pytest.mark.parametrize(
    ("draft", "computes", "apart", "expected"),
    [
        (TARGET, False, False, True),
        (DRAFT, False, False, False),
        (TARGET, False, True, False),
        (DRAFT, True, False, False),
        (None, False, False, False),
    ],
    ids=["on its cores", "on others", "on another node", "with a model", "no draft"],
)
def test_look_ups_without_a_model_are_made_where_the_target_is(
    draft: Device | None, computes: bool, apart: bool, expected: bool
) -> None:
    """In an actor of their own they would be a millisecond away from each pass."""
    sites = {"draft": THERE if apart else HERE, "target": HERE}
    found = Layout(sites, Placement(draft, TARGET, apart), computes, AUTO)
    assert found.target_looks_up is expected
    assert ("draft" in found.roles) is (draft is not None and not expected)


@pytest.mark.parametrize("device", ["cuda:0", "cpu:x"])
def test_a_device_that_the_coordinator_can_not_have_is_refused(device: str) -> None:
    with pytest.raises(UserError, match=device):
        Config().override(pipeline={"device": device})
