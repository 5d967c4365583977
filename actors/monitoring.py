"""A pipeline's figures as metrics of Ray, which Prometheus can read: named `ray_specpipe_…` there.

Names after the prefix are vLLM's where it has one. Ray takes increments, so each report is held
against the one before. A histogram is published as what it is in Prometheus: a counter for each
`le`, one of the sum and one of the count. Ray's own histograms would take a call for each value,
and know the sum only by the middles of their buckets.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ray.util.metrics import Counter, Gauge

from specpipe.figures import ROWS, Figures, Histogram
from specpipe.stopping import FINISH_REASONS

_NOTHING = 5e-324
"""Ray refuses to count 0, but rates need a series that begins there. This vanishes in any sum."""

PREFIX = "specpipe_"
_OF_PIPELINE = ("pipeline", "model")
_OF_WORKER = ("pipeline", "role", "model", "device")


class Series(NamedTuple):
    """One number with a name: `labels` are the values of the metric's labels, in their order."""

    metric: str
    labels: tuple[str, ...]
    value: float


class Metric(NamedTuple):
    """What a metric tells, and which labels its series have."""

    told: str
    labels: tuple[str, ...]


COUNTERS = {
    "prompt_tokens": Metric("Prompt tokens of requests that were begun", _OF_PIPELINE),
    "generation_tokens": Metric("Committed tokens", _OF_PIPELINE),
    "spec_decode_num_drafts": Metric("Blocks of guesses that were judged", _OF_PIPELINE),
    "spec_decode_num_draft_tokens": Metric("Guesses in these blocks", _OF_PIPELINE),
    "spec_decode_num_accepted_tokens": Metric("Guesses that stand", _OF_PIPELINE),
    "spec_decode_num_accepted_tokens_per_pos": Metric(
        "Guesses that stand, by position in their block", (*_OF_PIPELINE, "position")
    ),
    "spec_decode_num_wasted_tokens": Metric("Guesses that came to nothing", _OF_PIPELINE),
    "spec_decode_num_rollbacks": Metric("Commits that contradicted guesses", _OF_PIPELINE),
    "spec_decode_num_stale_blocks": Metric("Blocks dropped as outdated", _OF_PIPELINE),
    "target_passes": Metric("Verdicts of the target, on empty blocks too", _OF_PIPELINE),
    "request_success": Metric(
        "Requests that ended, by the reason", (*_OF_PIPELINE, "finished_reason")
    ),
    "worker_restarts": Metric("Times that a worker came up again after a loss", _OF_WORKER),
    "device_busy_seconds": Metric("Seconds for which a worker computed", _OF_WORKER),
}

HISTOGRAMS = {
    "time_to_first_token_seconds": Metric("From submission", _OF_PIPELINE),
    "time_per_output_token_seconds": Metric("After the first", _OF_PIPELINE),
    "e2e_request_latency_seconds": Metric("From submission to the last token", _OF_PIPELINE),
    "request_queue_time_seconds": Metric("From submission until reading begins", _OF_PIPELINE),
    "draft_step_seconds": Metric("A guess of the draft's model", _OF_WORKER),
    "verification_seconds": Metric(
        "A pass of the target that judges, by its rows", (*_OF_WORKER, "rows")
    ),
}

GAUGES = {
    "num_requests_running": Metric("Sequences with a slot", _OF_PIPELINE),
    "num_requests_waiting": Metric("Sequences without one", _OF_PIPELINE),
    "spec_decode_acceptance": Metric(
        "Chance that a guess stands, those before it standing: the last seconds", _OF_PIPELINE
    ),
    "device_busy": Metric("Share of the last seconds in which a worker computed", _OF_WORKER),
    "kv_cache_usage_perc": Metric("Share of the room for tokens in use; 1 is all", _OF_WORKER),
    "info": Metric(
        "1, with the settings",
        (
            *("pipeline", "model", "draft_model", "policy", "acceptance", "drafter", "lookahead"),
            *("max_num_seqs", "context_length", "version"),
        ),
    ),
}


def counts_of(figures: Figures) -> Iterator[Series]:
    """Everything that adds up."""
    counts, times = figures.counts, figures.times
    whole = (figures.pipeline, figures.setting("model"))
    yield Series("prompt_tokens", whole, counts.prompt_tokens)
    yield Series("generation_tokens", whole, counts.generation_tokens)
    yield Series("target_passes", whole, counts.verdicts)
    for name in ("drafts", "draft_tokens", "accepted_tokens"):
        yield Series(f"spec_decode_num_{name}", whole, getattr(counts, f"num_{name}"))
    for name in ("wasted_tokens", "rollbacks", "stale_blocks"):
        yield Series(f"spec_decode_num_{name}", whole, getattr(counts, name))
    for position, count in enumerate(counts.num_accepted_tokens_per_pos):
        labels = (*whole, str(position))
        yield Series("spec_decode_num_accepted_tokens_per_pos", labels, count)
    for reason, count in zip(FINISH_REASONS, counts.finished, strict=True):
        yield Series("request_success", (*whole, reason), count)
    for name in ("time_to_first_token", "time_per_output_token", "e2e_request_latency"):
        yield from _buckets(f"{name}_seconds", whole, getattr(times, name))
    yield from _buckets("request_queue_time_seconds", whole, times.request_queue_time)
    for worker in figures.workers:
        its = (figures.pipeline, worker.role, worker.model, worker.device)
        yield Series("worker_restarts", its, worker.restarts)
        yield Series("device_busy_seconds", its, worker.busy_seconds)
        if worker.role == "draft":
            yield from _buckets("draft_step_seconds", its, times.draft_step)
        else:
            for rows, passes in zip(ROWS, times.verification, strict=True):
                yield from _buckets("verification_seconds", (*its, rows), passes)


def states_of(figures: Figures) -> Iterator[Series]:
    """Everything that goes up and down."""
    whole = (figures.pipeline, figures.setting("model"))
    yield Series("num_requests_running", whole, figures.num_requests_running)
    yield Series("num_requests_waiting", whole, figures.num_requests_waiting)
    if figures.recent.acceptance is not None:
        yield Series("spec_decode_acceptance", whole, figures.recent.acceptance)
    for worker in figures.workers:
        labels = (figures.pipeline, worker.role, worker.model, worker.device)
        yield Series("device_busy", labels, worker.busy)
        yield Series("kv_cache_usage_perc", labels, worker.kv_cache_usage)
    _, *names = GAUGES["info"].labels
    yield Series("info", (figures.pipeline, *map(figures.setting, names)), 1)


def _buckets(metric: str, labels: tuple[str, ...], times: Histogram) -> Iterator[Series]:
    below = 0
    for bound, count in zip((*map(str, times.bounds), "+Inf"), times.counts, strict=True):
        below += count
        yield Series(f"{metric}_bucket", (*labels, bound), below)
    yield Series(f"{metric}_sum", labels, times.total)
    yield Series(f"{metric}_count", labels, below)


def all_counters() -> Mapping[str, Metric]:
    """COUNTERS, and the three that make up each histogram."""
    parts = {}
    for name, (told, labels) in HISTOGRAMS.items():
        parts[f"{name}_bucket"] = Metric(told, (*labels, "le"))
        parts[f"{name}_sum"] = parts[f"{name}_count"] = Metric(told, labels)
    return COUNTERS | parts


class Publisher:
    """Hands figures to Ray, which this process is connected to; for one thread."""

    def __init__(self) -> None:
        counters = all_counters()
        self._counters = {
            name: Counter(PREFIX + name, description=told, tag_keys=labels)
            for name, (told, labels) in counters.items()
        }
        self._gauges = {
            name: Gauge(PREFIX + name, description=told, tag_keys=labels)
            for name, (told, labels) in GAUGES.items()
        }
        self._labels = {name: metric.labels for name, metric in {**counters, **GAUGES}.items()}
        self._published: dict[tuple[str, tuple[str, ...]], float] = {}

    def publish(self, figures: Figures) -> None:
        """Count what was added since the last time, and set what has a state."""
        for metric, labels, value in counts_of(figures):
            before = self._published.get((metric, labels))
            more = _NOTHING if before is None and not value else value - (before or 0)
            if more > 0:
                self._counters[metric].inc(more, self._tags(metric, labels))
            self._published[metric, labels] = value
        for metric, labels, value in states_of(figures):
            self._gauges[metric].set(value, self._tags(metric, labels))

    def _tags(self, metric: str, labels: tuple[str, ...]) -> dict[str, str]:
        return dict(zip(self._labels[metric], labels, strict=True))
