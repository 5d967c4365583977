"""An abort frees what a request holds on both sides, within one step of each."""

import pytest

from specpipe.messages import Abort
from specpipe.worker_messages import Role
from tests.virtual import World

SEEDS = 250


def steps(world: World, role: Role) -> float:
    """How long a message may take there and back, and the longest step between; seconds.

    The target of a World takes the time of a pass for each message, a Close included.
    """
    step = 1.5 if role == "draft" else 2 * 1.5 * world.verify_s
    return step + 2 * world.delay + 0.01


def aborted(seed: int, moment: float) -> int:
    """Abort a schedule's only request; returns how many workers held it."""
    world, held = World(seed), 0
    workers = world.coordinator.workers

    def abort() -> None:
        nonlocal held
        if 0 not in world.coordinator.sequences:  # it is over, or is yet to come
            return
        held = sum(0 in worker.held for worker in workers.values())
        world._tell(Abort(0))
        for role in workers:
            world.at(moment + steps(world, role), check, role)

    def check(role: Role) -> None:
        assert not workers[role].held, f"seed {seed}: the {role} holds it still"

    world.aborted.add(0)
    world.at(moment, abort)
    world.run()
    return held


@pytest.fixture(scope="module")
def seeds() -> list[int]:
    """Schedules of one request and no faults."""
    worlds = {seed: World(seed) for seed in range(SEEDS)}
    return [seed for seed, world in worlds.items() if world.clean and len(world.submitted) == 1]


@pytest.mark.parametrize("moment", [4.0, 9.0, 17.0, 31.0])
def test_an_abort_frees_both_slots_within_one_step(seeds: list[int], moment: float) -> None:
    """A slot that is held until an answer would have been whole keeps others waiting."""
    held = [aborted(seed, moment) for seed in seeds]
    assert held.count(2) > 3, "hardly any request was at work when it was aborted"
