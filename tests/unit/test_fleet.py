"""Many pipelines, many sequences each, and a queue of requests of uneven lengths."""

import pytest

from specpipe.dispatch import make_policy
from specpipe.fleet import Fleet, FleetOutcome, Request, uneven_requests
from specpipe.simulated_workers import Hardware

HARDWARE = Hardware(
    1.5e-3, ((1, 19e-3), (8, 28e-3), (32, 76e-3)), contention=0.05, latency=1e-4, jitter=0.05
)


def played(
    requests: list[Request], *, pairs: int = 1, slots: int = 8, policy: str = "elastic"
) -> FleetOutcome:
    fleet = Fleet(
        lambda: make_policy(policy),
        HARDWARE,
        pairs=pairs,
        slots=slots,
        requests=requests,
        acceptance=0.6,
    )
    return fleet.run()


def test_uneven_lengths_leave_no_target_idle() -> None:
    """A sequence that ends would leave its place empty until the longest one ended too."""
    requests = uneven_requests(48, prompt=30, tokens=40, seed=2)
    outcome = played(requests, pairs=2)
    assert outcome.tokens == sum(request.tokens for request in requests)
    assert outcome.steady > 0.95
    assert sum(each.timeouts + each.protocol_errors for each in outcome.metrics) == 0


@pytest.mark.parametrize("slots", [2, 8])
def test_guesses_of_several_sequences_do_not_cost_more_than_they_bring(slots: int) -> None:
    """Blocks as long as for one sequence: the rows of all are what the pass lasts."""
    requests = uneven_requests(24, prompt=8, tokens=50, seed=3)
    alone, speculating = (
        played(requests, slots=slots, policy=policy).seconds for policy in ("serial:0", "elastic")
    )
    assert speculating < alone * (0.9 if slots == 2 else 1.03)


def test_many_in_flight_write_more_and_wait_evenly() -> None:
    """A sequence that is passed over again and again."""
    requests = [Request(8, 40)] * 24
    one, many = (played(requests, slots=slots) for slots in (1, 8))
    assert one.seconds > 1.8 * many.seconds
    latencies = sorted(each.seconds for each in many.metrics[:-8])
    assert latencies[-1] < 2 * latencies[len(latencies) // 2]
