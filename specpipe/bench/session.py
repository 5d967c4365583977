"""A whole run of the scenarios: from what is asked for to files in a folder.

This module is given what starts a pipeline, so that it needs to know nothing of Ray.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from specpipe.bench.journal import Journal
from specpipe.bench.peers import check_peers, peer_contenders, start_peer
from specpipe.bench.pictures import draw_all
from specpipe.bench.report import document
from specpipe.bench.results import Results, summarise
from specpipe.bench.runner import Answerer, Pipeline, PipelineAnswerer, Progress, Runner
from specpipe.bench.scenarios import Contender, contenders, layouts, missing
from specpipe.config import Config
from specpipe.devices import Device, Placement, parse_device
from specpipe.errors import UserError
from specpipe.machine import (
    LIBRARIES,
    cpu_model,
    library_version,
    usable_cores,
    usable_memory,
)
from specpipe.models.store import ModelFiles
from specpipe.pair import ModelPair
from specpipe.prompts import Question
from specpipe.trace_picture import draw, read_trace, window_of
from specpipe.version import __version__

RESULTS, REPORT, TRACE, TIMELINE = "results.json", "report.md", "trace.json", "timeline.png"
_TRACED = 3  # answers in the trace, of which the last is drawn
_SHOWN_S = 2.0
_BUSY = 0.25  # load for each core from which on a machine is not idle

Launch = Callable[[Config], AbstractContextManager[Pipeline]]
"""Starts a pipeline, and ends it."""


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes:
        config: of the pipeline; its sampling has a seed.
        pair: its models.
        placement: where they run.
        questions: the prompts, and `source`, where they come from.
        scenarios: of scenarios.SCENARIOS.
        lengths: numbers of guesses that S and S_all are tried with.
        repeats: how often each answer is timed.
        peers: of peers.WAYS.

    Raises:
        UserError: for what can't be measured so, before anything is started.
    """

    config: Config
    pair: ModelPair
    placement: Placement
    questions: Sequence[Question]
    source: str
    scenarios: Sequence[str]
    lengths: Sequence[int]
    repeats: int
    peers: Sequence[str] = ()
    prompts: list[list[int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        layouts(self.config, self.placement)
        lacks = missing(self.config, self.placement)
        for scenario in self.scenarios:
            if scenario in lacks:
                raise UserError(f"there can be no {scenario} here: {lacks[scenario]}; leave it out")
        check_peers(self.peers, self.pair)
        prompts = [self.pair.encode(question.text) for question in self.questions]
        object.__setattr__(self, "prompts", prompts)
        longest = max(map(len, prompts))
        if "B" in self.scenarios and longest >= self.pair.draft_context_length:
            raise UserError(
                f"a prompt has {longest} tokens, and the draft's context holds "
                f"{self.pair.draft_context_length}: leave B out of --scenarios"
            )

    @cached_property
    def contenders(self) -> list[Contender]:
        """Who answers."""
        policy = self.config.pipeline.policy
        own = contenders(self.scenarios, policy, self.lengths)
        return [*own, *peer_contenders(self.peers, self.pair)]

    @property
    def comparable(self) -> bool:
        """Whether all but the draft alone are to write the same tokens."""
        greedy = self.config.sampling.temperature == 0
        return greedy or self.config.pipeline.acceptance == "coupled"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that a measurement depends on, as plain values, short ones first."""
        config, draft = self.config, self.config.draft
        assert draft is not None
        starts = layouts(config, self.placement)
        needed = {contender.layout for contender in self.contenders}
        return {
            "target": self.pair.target.name,
            "draft": self.pair.draft.name if self.pair.draft else "look-ups",
            "drafter": draft.drafter,
            "policy": config.pipeline.policy,
            "acceptance": config.pipeline.acceptance,
            "scenarios": list(self.scenarios),
            "lengths": list(self.lengths),
            "peers": list(self.peers),
            "repeats": self.repeats,
            "source": self.source,
            "prompts": len(self.prompts),
            "prompts_hash": _hash(self.prompts),
            "sampling": asdict(config.sampling),
            "devices": {name: _devices(starts[name]) for name in starts if name in needed},
            "models": {
                role: _identity(files)
                for role, files in (("target", self.pair.target), ("draft", self.pair.draft))
                if files
            },
            "specpipe": __version__,
            "processor": cpu_model(),
            "config": asdict(replace(config, models_dir=None)),
        }

    @property
    def all_devices(self) -> Device:
        """What peers may use: the pipeline's devices together."""
        starts = layouts(self.config, self.placement)
        return parse_device(starts.get("target on all", starts["target"]).target.device)


def run(plan: Plan, journal: Journal, launch: Launch, progress: Progress) -> Results:
    """Measure what a journal lacks of a plan, and write the results beside it.

    Args:
        plan: what to measure.
        journal: of this plan; results.json, report.md and the pictures come into its folder.
        launch: starts pipelines.
        progress: hears how far it has come.

    Raises:
        SpecpipeError: when a pipeline or a peer fails. What was measured stays.
    """
    folder, starts = journal.path.parent, layouts(plan.config, plan.placement)

    @contextmanager
    def start(layout: str) -> Iterator[Answerer]:
        if layout in starts:
            with launch(starts[layout]) as pipeline:
                yield PipelineAnswerer(pipeline)
        else:
            with start_peer(layout, plan.pair, plan.all_devices.cores) as peer:
                yield peer

    machine = describe_machine()
    runner = Runner(plan.contenders, plan.prompts, plan.config.sampling, plan.repeats)
    old = len(journal.done)
    if old == len(runner.keys):
        progress.say(f"all was measured already: remove {journal.path} to measure anew")
    elif old:
        progress.say(f"going on after {old} of {len(runner.keys)} measurements")
    else:
        (folder / TIMELINE).unlink(missing_ok=True)  # it was another run's
    if machine["load"] > _BUSY * machine["cores"]:
        progress.say(f"this machine is busy (load {machine['load']:.1f}): times will mislead")
    runner.run(journal, start, progress)
    results = summarise(
        plan.contenders,
        journal.done.values(),
        questions=[
            {"category": each.category, "tokens": len(prompt), "hash": _hash(prompt)}
            for each, prompt in zip(plan.questions, plan.prompts, strict=True)
        ],
        settings=plan.settings | {"left_out": missing(plan.config, plan.placement)},
        machine=machine,
        comparable=plan.comparable,
    )
    pictures = draw_all(results, folder)
    if "C" in plan.scenarios:
        pictures += _timeline(plan, folder, launch, progress)
    _write(folder / RESULTS, json.dumps(results, indent=1) + "\n")
    _write(folder / REPORT, document(results, pictures))
    return results


def describe_machine() -> dict[str, Any]:
    """What measurements are to be judged by."""
    versions = {"specpipe": __version__, "python": platform.python_version()}
    found = {name: library_version(name) for name in (*LIBRARIES, "transformers")}
    found["llama.cpp"] = library_version("llama-cpp-python")
    return {
        "processor": cpu_model(),
        "cores": len(usable_cores()),
        "memory_gb": usable_memory() / 1e9,
        "system": f"{platform.system()} {platform.release()}",
        "load": os.getloadavg()[0],
        "versions": versions | {name: version for name, version in found.items() if version},
    }


def _timeline(plan: Plan, folder: Path, launch: Launch, progress: Progress) -> list[str]:
    """Trace the pipeline on a few prompts and draw the end of it; unless that was done before."""
    picture, trace = folder / TIMELINE, folder / TRACE
    if not picture.exists():
        progress.say("tracing the pipeline")
        config = layouts(plan.config, plan.placement)["pair"]
        traced = replace(config, pipeline=replace(config.pipeline, trace=str(trace)))
        with launch(traced) as pipeline:
            for prompt in plan.prompts[:_TRACED]:
                pipeline.generate([prompt], plan.config.sampling)
        found = read_trace(trace)
        start = max(0.0, found.seconds - _SHOWN_S)
        draw(found, window_of(found, start, _SHOWN_S), picture)
    return [TIMELINE]


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; make room, and run it again"
        ) from None


def _devices(config: Config) -> str:
    target = config.target.device
    if config.draft is None:
        return target
    return f"draft on {config.draft.device}, target on {target}"


def _identity(files: ModelFiles) -> dict[str, int]:
    """Names and sizes of a model's files."""
    return {path.name: path.stat().st_size for path in files.paths}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
