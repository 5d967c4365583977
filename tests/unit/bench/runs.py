"""Runs that never were: measurements by rule, for what is computed from them."""

from typing import Any

from specpipe.bench.measurement import Figures, Measurement
from specpipe.bench.results import Results, summarise
from specpipe.bench.scenarios import SCENARIOS, Contender, contenders

KINDS = ("chat", "code")
SPEEDS = {
    **{"A": 10.0, "A_all": 16.0, "B": 40.0, "C": 18.0},
    **{"S:2": 12.0, "S:4": 14.0, "S_all:2": 15.0, "S_all:4": 9.0},
}
MACHINE: dict[str, Any] = {
    **{"processor": "a processor", "cores": 2, "memory_gb": 8.0, "system": "Linux", "load": 0.1},
    "versions": {"specpipe": "1"},
}
SETTINGS: dict[str, Any] = {
    **{"target": "big", "draft": "small", "policy": "elastic", "acceptance": "coupled"},
    **{"devices": {"pair": "draft on cpu:0, target on cpu:1"}, "prompts": 8, "repeats": 2},
    **{"source": "a file", "left_out": {"B": "it is not there"}},
    "sampling": {"max_tokens": 100, "temperature": 0.0},
}


def figures(speed: float, **changes: Any) -> Figures:
    values: dict[str, Any] = {
        **{"answer": "a", "finish_reason": "length", "prompt_tokens": 5, "tokens": 100},
        **{"seconds": 100 / speed, "first_token_s": 0.2, "per_token_s": 0.03, "forwards": 50},
        **{"verifying_s": 4.0, "overlap_s": 3.0, "target_idle": 0.2, "messages": 200},
        "message_bytes": 5000,
    }
    return Figures(**(values | changes))


def guessing(speed: float, **changes: Any) -> Figures:
    values = {"drafted": 80, "sent": 70, "accepted": 50, "useful": 25, "rollbacks": 10}
    more = {"draft_idle": 0.5, "positions": [[40, 30], [20, 20]]}
    return figures(speed, **(values | more | changes))


def measurements(
    speeds: dict[str, float] = SPEEDS, prompts: int = 8, repeats: int = 2
) -> list[Measurement]:
    """Each prompt a little faster than the one before, for all contenders alike."""
    return [
        Measurement(name, prompt, repeat, make(speed * (1 + 0.01 * prompt)))
        for name, speed in speeds.items()
        for make in [guessing if name[0] in "CS" else figures]
        for prompt in range(prompts)
        for repeat in range(repeats)
    ]


def run(
    found: list[Measurement] | None = None,
    *,
    prompts: int = 8,
    comparable: bool = True,
    more: tuple[Contender, ...] = (),
) -> Results:
    return summarise(
        [*contenders(SCENARIOS, "elastic", (2, 4)), *more],
        measurements(prompts=prompts) if found is None else found,
        questions=[
            {"category": KINDS[prompt % 2], "tokens": 5, "hash": f"h{prompt}"}
            for prompt in range(prompts)
        ],
        settings=SETTINGS,
        machine=MACHINE,
        comparable=comparable,
    )
