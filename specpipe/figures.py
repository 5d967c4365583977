"""The figures of a running pipeline at a moment: what is published, shown, and told to scripts.

Counts and histograms add up from the pipeline's beginning and never fall; who wants a rate compares
two moments. This module knows neither how figures are gathered (statistics.py) nor who reads them.
"""

from bisect import bisect_left
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from specpipe.stopping import FINISH_REASONS

Activity = Literal["absent", "idle", "reading", "drafting", "verifying"]
"""What a worker does: reading is feeding tokens that are not judged."""

REQUEST_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0)
"""Seconds between which whole requests, and the waits of their users, are told apart."""

STEP_BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""The same for a single pass of a model."""

ROWS = ("1", "2", "3-4", "5-8", "9-16", "17-32", "33+")
"""Verifications are told apart by their rows: the guesses, and one."""

_SHOWN_POSITIONS = 8


def rows_index(rows: int) -> int:
    """Which of ROWS a verification of so many rows, at least one, belongs to."""
    return min((rows - 1).bit_length(), len(ROWS) - 1)


@dataclass(slots=True)
class Histogram:
    """How often something took how long.

    Attributes:
        bounds: seconds, rising.
        counts: of values up to each bound but above the one before; the last are above all.
        total: sum of all values; seconds.
    """

    bounds: tuple[float, ...]
    counts: list[int]
    total: float = 0.0

    @classmethod
    def over(cls, bounds: tuple[float, ...]) -> "Histogram":
        """An empty one."""
        return cls(bounds, [0] * (len(bounds) + 1))

    def add(self, seconds: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    @property
    def count(self) -> int:
        """How many values."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """About the value below which this share of all lies; None if there are none.

        Interpolated within a bucket, as Prometheus does it; at most the last bound.
        """
        rank, below = share * self.count, 0
        lows = (0.0, *self.bounds)
        for low, high, count in zip(lows, self.bounds, self.counts, strict=False):
            if count and below + count >= rank:
                return low + (high - low) * (rank - below) / count
            below += count
        return self.bounds[-1] if self.count else None


@dataclass(slots=True)
class Counts:
    """What added up since the pipeline began, under vLLM's names where it has them.

    Attributes:
        prompt_tokens: of requests that were begun.
        generation_tokens: committed.
        verdicts: answers of the target that judged something, empty blocks included.
        num_drafts: blocks, not empty, that were judged.
        num_draft_tokens: guesses in them, as far as they are counted (nothing is after the end).
        num_accepted_tokens: that stand.
        num_accepted_tokens_per_pos: the same by position in the block.
        wasted_tokens: drafted, and by now certainly not accepted.
        rollbacks: commits that contradicted what was drafted.
        stale_blocks: blocks dropped because they continued an abandoned chain.
        finished: requests by the reason for which they ended, in the order of FINISH_REASONS.
    """

    prompt_tokens: int = 0
    generation_tokens: int = 0
    verdicts: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_accepted_tokens_per_pos: list[int] = field(default_factory=lambda: [0] * _SHOWN_POSITIONS)
    wasted_tokens: int = 0
    rollbacks: int = 0
    stale_blocks: int = 0
    finished: list[int] = field(default_factory=lambda: [0] * len(FINISH_REASONS))


def _of_requests() -> Histogram:
    return Histogram.over(REQUEST_BOUNDS)


def _of_steps() -> Histogram:
    return Histogram.over(STEP_BOUNDS)


@dataclass(slots=True)
class Times:
    """How long things took since the pipeline began.

    Attributes:
        time_to_first_token: from submission.
        time_per_output_token: after the first; one value for each whole request of two tokens or
            more. This and the next: of requests that ended by themselves.
        e2e_request_latency: from submission to the last token.
        request_queue_time: from submission until the target was given something to read.
        draft_step: a guess of the draft's model; look-ups take no time.
        verification: a pass of the target that did nothing but judge, for each of ROWS; blocks of
            several sequences in one pass count together.
    """

    time_to_first_token: Histogram = field(default_factory=_of_requests)
    time_per_output_token: Histogram = field(default_factory=_of_steps)
    e2e_request_latency: Histogram = field(default_factory=_of_requests)
    request_queue_time: Histogram = field(default_factory=_of_requests)
    draft_step: Histogram = field(default_factory=_of_steps)
    verification: list[Histogram] = field(default_factory=lambda: [_of_steps() for _ in ROWS])


@dataclass(frozen=True, slots=True)
class Recent:
    """The last few seconds.

    Attributes:
        seconds: how many.
        tokens_per_second: committed, of all requests.
        acceptance_rate: accepted by sent tokens; None if none were sent.
        acceptance: chance that a guess stands, those before it standing; None if there were none.
    """

    seconds: float = 0.0
    tokens_per_second: float = 0.0
    acceptance_rate: float | None = None
    acceptance: float | None = None


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    """A worker, as it reported of itself and as it goes.

    Attributes:
        role, model, device: who it is, with what, and where.
        activity: at this very moment, as far as the hub knows.
        restarts: how often it came up again after it was lost.
        busy_seconds: time for which it computed; of the latest pass only once it has ended.
        busy: share of the last few seconds.
        kv_cache_usage: share of the room for tokens, over all slots, that requests fill.
    """

    role: str
    model: str
    device: str
    activity: Activity
    restarts: int
    busy_seconds: float
    busy: float
    kv_cache_usage: float


@dataclass(frozen=True, slots=True)
class SequenceFigures:
    """A request that runs or waits.

    Attributes:
        running: whether it was given a slot.
        ahead: guesses that the target has not judged yet.
        num_draft_tokens, num_accepted_tokens: as in Counts, of this request.
        seconds: since it was submitted.
    """

    request: int
    running: bool
    prompt_tokens: int
    generation_tokens: int
    ahead: int
    num_draft_tokens: int
    num_accepted_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Setting:
    """One of the settings that say which pipeline this is."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Figures:
    """All of it.

    Attributes:
        pipeline: its name, that of the folder of its sockets.
        pid: of the program that embeds it.
        settings: what it was launched with, and the policy of this moment.
        seconds: since it began.
        num_requests_running, num_requests_waiting: with a slot, and without.
        sequences: of those, the first few.
    """

    pipeline: str
    pid: int
    settings: tuple[Setting, ...]
    seconds: float
    num_requests_running: int
    num_requests_waiting: int
    counts: Counts
    times: Times
    recent: Recent
    workers: tuple[WorkerFigures, ...]
    sequences: tuple[SequenceFigures, ...]

    def setting(self, name: str) -> str:
        """The value of a setting; empty if there is none of the name."""
        return next((each.value for each in self.settings if each.name == name), "")

    def as_json(self) -> dict[str, Any]:
        """Plain values for scripts; histograms by their count, sum and quantiles."""
        plain = asdict(self)
        plain["settings"] = {each.name: each.value for each in self.settings}
        plain["counts"]["finished"] = dict(zip(FINISH_REASONS, self.counts.finished, strict=True))
        times = plain["times"]
        for name in times:
            values = getattr(self.times, name)
            if isinstance(values, Histogram):
                times[name] = _summary(values)
            else:
                named = zip(ROWS, values, strict=True)
                times[name] = {rows: _summary(each) for rows, each in named if each.count}
        return plain


def _summary(times: Histogram) -> dict[str, float | int | None]:
    quantiles = {f"p{share}": times.quantile(share / 100) for share in (50, 95, 99)}
    return {"count": times.count, "seconds": times.total} | quantiles
