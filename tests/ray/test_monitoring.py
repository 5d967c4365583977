"""Metrics on their whole way: from the hub through Ray to a Prometheus that really reads them."""

import math
import re
import shutil
import socket
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
from ray.util.state import list_actors

from specpipe.actors import Config, Pipeline, monitoring
from specpipe.metrics import RequestMetrics
from specpipe.watching import running_pipelines
from tests.monitoring import Prometheus, load, panels, prometheus
from tests.unit.test_statistics import totals, watched

LATE_S = 90.0  # Ray passes metrics on every ten seconds, Prometheus reads them every five


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder of Ray's own, so that no other Ray of this machine is read; its paths are long."""
    folder = tempfile.mkdtemp(prefix="r-", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    yield f"{folder}/ray"
    shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def in_time(check: Callable[[], None]) -> None:
    """Wait until a check passes, which metrics on their way let fail."""
    deadline = time.monotonic() + LATE_S
    while True:
        try:
            return check()
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1.0)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="there is no prometheus: apt install prometheus"
)
def test_prometheus_has_the_figures_of_the_run_and_grafana_its_data(smollm2, ray_folder) -> None:
    """A metric that is renamed, counted twice or lost on its way; a panel that stays empty."""
    config = Config().override(
        models_dir=str(smollm2.folder.parent),
        draft={"model": "smollm2"},
        pipeline={"policy": "take_all"},  # so that something is drafted, judged and rolled back
        ray={"dashboard": True},
    )
    with Pipeline.launch(config) as pipeline, prometheus(free_port(), ray_folder) as server:
        answers = load(pipeline, 1.0)
        in_time(lambda: check_info(server, pipeline))  # now all series have begun
        answers += load(pipeline, 45.0)
        check_grafana(server)
        check_ray_pages(pipeline)
        metrics = [answer.metrics for answer in answers]
        in_time(lambda: check_figures(server, pipeline.name, metrics))


def check_info(server: Prometheus, pipeline: Pipeline) -> None:
    chosen = f'pipeline="{pipeline.name}", model="smollm2", policy="take_all", lookahead="64"'
    assert list(server.ask(f"ray_specpipe_info{{{chosen}}}").values()) == [1.0]


def check_figures(server: Prometheus, name: str, metrics: list[RequestMetrics]) -> None:
    """What Prometheus has is what the answers say, to the last token."""
    whole, counts = {"pipeline": name}, totals(metrics)
    assert counts.num_accepted_tokens > 0
    for metric in ("generation_tokens", "prompt_tokens"):
        assert server.total(f"{metric}_total", **whole) == getattr(counts, metric)
    for metric in ("drafts", "draft_tokens", "accepted_tokens"):
        total = server.total(f"spec_decode_num_{metric}_total", **whole)
        assert total == getattr(counts, f"num_{metric}")
    for metric in ("rollbacks", "wasted_tokens", "stale_blocks"):
        total = server.total(f"spec_decode_num_{metric}_total", **whole)
        assert total == pytest.approx(getattr(counts, metric))  # none is 5e-324
    assert server.total("target_passes_total", **whole) == counts.verdicts
    per_position = "spec_decode_num_accepted_tokens_per_pos_total"
    assert server.total(per_position, **whole) == counts.num_accepted_tokens
    assert server.total("request_success_total", **whole) == len(metrics)
    waits = [each.time_to_first_token or 0.0 for each in metrics]
    first = "time_to_first_token_seconds"
    assert server.total(f"{first}_count_total", **whole) == len(waits)
    assert server.total(f"{first}_sum_total", **whole) == pytest.approx(sum(waits))
    for bound in ("0.05", "0.5", "5.0"):
        below = sum(wait <= float(bound) for wait in waits)
        bucket = server.total(f"{first}_bucket_total", le=bound, **whole)
        assert bucket == pytest.approx(below)
    (figures,) = (each for each in running_pipelines(5.0) if each.pipeline == name)
    steps = server.total("draft_step_seconds_count_total", **whole)
    assert steps == figures.times.draft_step.count


def check_grafana(server: Prometheus) -> None:
    """Each query of the dashboard, while there is work."""
    for title, query in panels():
        found = server.ask(query).values()  # not a number: no such thing in the last minute
        assert not all(math.isnan(value) for value in found), f"{title}: no data for {query}"


def check_ray_pages(pipeline: Pipeline) -> None:
    """`ray list actors` tells which is which."""
    assert pipeline.dashboard
    actors = {actor.class_name: actor for actor in list_actors(pipeline.dashboard, detail=True)}
    assert set(actors) == {"DraftHost", "TargetHost"}
    for kind, role in (("DraftHost", "draft"), ("TargetHost", "target")):
        assert actors[kind].name == f"{pipeline.name}-{role}-1"
        assert actors[kind].state == "ALIVE"
        device = pipeline.workers[role].device
        assert actors[kind].repr_name == f"{role}: smollm2 on {device}"
    with urllib.request.urlopen(pipeline.dashboard, timeout=10) as page:
        assert page.status == 200


class Recorded:
    """Takes the place of a metric of Ray, whose values nobody can read back."""

    known: ClassVar[dict[str, "Recorded"]] = {}

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert description
        self.labels, self.values = tag_keys, Counter[frozenset[tuple[str, str]]]()
        self.known[name] = self

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0, "Ray refuses that"
        assert set(tags) == set(self.labels)
        self.values[frozenset(tags.items())] += value

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.labels)
        self.values[frozenset(tags.items())] = value


def test_what_ray_is_told_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is counted again at each report, or a series begins at its first increment, of
    which Prometheus then knows nothing."""
    monkeypatch.setattr(monitoring, "Counter", Recorded)
    monkeypatch.setattr(monitoring, "Gauge", Recorded)
    runs = [watched(seed)[1] for seed in range(12)]
    known = max(runs, key=lambda known: known[-1].counts.num_accepted_tokens)
    publisher = monitoring.Publisher()
    publisher.publish(known[0])
    metrics = Recorded.known
    tokens = metrics["specpipe_generation_tokens"].values
    assert list(tokens.values()) == [5e-324]
    assert len(metrics["specpipe_time_to_first_token_seconds_bucket"].values) == 14
    for figures in known[1:]:
        publisher.publish(figures)
    last = known[-1]
    assert sum(tokens.values()) == last.counts.generation_tokens
    accepted = metrics["specpipe_spec_decode_num_accepted_tokens_per_pos"].values
    assert sum(accepted.values()) == last.counts.num_accepted_tokens
    first = last.times.time_to_first_token
    by_bound = {
        dict(labels)["le"]: value
        for labels, value in metrics["specpipe_time_to_first_token_seconds_bucket"].values.items()
    }
    assert by_bound["+Inf"] == first.count == by_bound["180.0"]
    assert by_bound["2.5"] == pytest.approx(sum(first.counts[:8]))
    (whole,) = metrics["specpipe_time_to_first_token_seconds_sum"].values.values()
    assert whole == pytest.approx(first.total)
    assert list(metrics["specpipe_num_requests_running"].values.values()) == [0]


def test_grafana_asks_for_what_there_is() -> None:
    """A metric is renamed, and its panel is empty from then on."""
    counters = {f"{name}_total" for name in monitoring.all_counters()}
    known = {f"ray_specpipe_{name}" for name in counters | set(monitoring.GAUGES)}
    asked = {name for _, query in panels() for name in re.findall(r"ray_specpipe_\w+", query)}
    assert asked <= known
    assert len(list(panels())) > 20
