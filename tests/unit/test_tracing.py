"""Traces: what is drawn is what was, and a file that is no trace is refused."""

import io
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from specpipe.errors import UserError
from specpipe.metrics import SOURCES
from specpipe.new_file import new_file
from specpipe.trace_picture import draw, read_trace, window_of
from specpipe.tracing import Tracer, events_of
from tests.virtual import World


def traced(seed: int) -> tuple[World, str]:
    """A schedule that was run, and its trace."""
    world, file = World(seed), io.StringIO()
    tracer, handle = Tracer(file), world.coordinator.handle

    def told(event: Any, now: float) -> Any:
        commands = handle(event, now)
        tracer.note(event, commands, now)
        tracer.flush()
        return commands

    world.coordinator.handle = told  # type: ignore[method-assign]
    world.run()
    tracer.close()
    assert not tracer._guessed, "kept of a request that ended"
    return world, file.getvalue()


def clean_seeds(count: int) -> list[int]:
    """Schedules without faults, in which something is drafted."""
    worlds = {seed: World(seed) for seed in range(100)}
    return [s for s, world in worlds.items() if world.clean and world.drafter != "ngram"][:count]


@pytest.mark.parametrize("seed", clean_seeds(6))
def test_a_trace_counts_what_the_metrics_count(seed: int, tmp_path: Path) -> None:
    """A verification that is missing or doubled, a rollback drawn as a commit, a guess at the wrong
    position: the picture would look as good as the right one."""
    world, text = traced(seed)
    events = json.loads(text)
    names = Counter(event["name"] for event in events if event["ph"] == "X")
    metrics = [finish.metrics for finish in world.finished.values()]
    assert names["verify"] == sum(m.target_forwards for m in metrics)
    assert names["rollback"] == sum(m.rollbacks for m in metrics)
    assert names["commit"] == names["verify"] - names["rollback"]
    for source in SOURCES:
        assert names[source] >= sum(m.of_source(source).drafted for m in metrics)
    path = tmp_path / "run.json"
    path.write_text(text)
    trace = read_trace(path)
    passes = [event["args"] for event in events if event["name"] == "verify"]
    # What a text's end cuts off was accepted by the verdict alone.
    assert len(trace.stood) == sum(each["accepted"] for each in passes)
    assert len(trace.stood) >= sum(m.accepted for m in metrics)
    blocks = [each["block"] for each in passes]
    parts = Counter(event["ph"] for event in events if event.get("cat") == "block")
    assert parts["s"] == parts["t"] == sum(block > 0 for block in blocks)
    assert parts["f"] >= parts["t"]


@pytest.mark.parametrize("seed", range(20))
def test_a_worker_does_one_thing_at_a_time(seed: int) -> None:
    """Slices that overlap within a row, which Perfetto drops; with faults, too."""
    world, text = traced(seed)
    by_row: dict[int, list[tuple[float, float]]] = {0: [], 1: []}
    for event in json.loads(text):
        if event["ph"] == "X" and event["tid"] in by_row:
            by_row[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    killed = world.seen["draft killed"] + world.seen["target killed"]
    for slices in by_row.values():
        slices = sorted(set(slices))  # noqa: PLW2901 (doubled messages)
        overlaps = sum(a[1] > b[0] + 0.2 for a, b in itertools.pairwise(slices))
        assert overlaps <= killed


def test_a_trace_without_an_end_can_be_read(tmp_path: Path) -> None:
    """What a killed run leaves, which is when one wants to see it."""
    _, text = traced(clean_seeds(1)[0])
    whole, cut = tmp_path / "whole.json", tmp_path / "cut.json"
    whole.write_text(text)
    cut.write_text("".join(text.splitlines(keepends=True)[:-2]))
    assert read_trace(cut).slices == read_trace(whole).slices
    assert list(events_of(iter(["[", '{"ph": "M"},', "", "]"]))) == [{"ph": "M"}]


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    """A suffix that says another format than the content; a window that shows something else."""
    _, text = traced(clean_seeds(1)[0])
    (tmp_path / "run.json").write_text(text)
    trace = read_trace(tmp_path / "run.json")
    window = window_of(trace, None, 10.0)
    assert window.end - window.begin == pytest.approx(10.0)
    assert (window.begin + window.end) / 2 == pytest.approx(trace.seconds / 2)
    assert 0 <= window.both_busy <= min(window.draft_busy, window.target_busy) <= 1
    assert window_of(trace, 0.0, 1e9).verifications == text.count('"verify"')
    draw(trace, window, tmp_path / "run.png")
    draw(trace, window, tmp_path / "run.svg")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "run.svg").read_text()
    with pytest.raises(UserError, match=r"--start is 9e\+09"):
        window_of(trace, 9e9, 1.0)
    for wrong in ("absent/run.png", "run.mp9"):
        with pytest.raises(UserError, match="--out"):
            draw(trace, window, tmp_path / wrong)


SLICE = {"ph": "X", "ts": 0, "dur": 1, "tid": 1, "name": "verify", "args": {}}
GOOD = {"request": 1, "position": 0, "accepted": 0, "block": 0}
SPOILT = {
    "no event": "[\n]",
    "not JSON": "[\n{nonsense},\n]",
    "no object": "[\n7,\n]",
    "no slice": '[\n{"ph": "X"},\n]',
    "deep": "[" * 100_000,
    "not UTF-8": b"\xff\xfe",
    "endless": json.dumps(SLICE | {"args": GOOD, "dur": float("inf")}),
    "a row of no actor": json.dumps(SLICE | {"args": GOOD, "tid": 3}),
    "a row that is none": json.dumps(SLICE | {"args": GOOD, "tid": [1]}),
    "a verification of nothing": json.dumps(SLICE),
    "more accepted than sent": json.dumps(SLICE | {"args": GOOD | {"accepted": 10**9}}),
    "a block of any size": json.dumps(SLICE | {"args": GOOD | {"accepted": 10**9, "block": 10**9}}),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_file_that_is_no_trace_is_refused(what: str, tmp_path: Path) -> None:
    """A traceback, a picture of nothing, or a minute of counting."""
    content = SPOILT[what]
    path = tmp_path / "run.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"run\.json") as caught:
        read_trace(path)
    assert "\n" not in str(caught.value)


def test_a_trace_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write a trace"):
        new_file(str(tmp_path / "absent" / "run.json"), "a trace")
