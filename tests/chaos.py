"""Generations while a thread kills and stops the workers: `make chaos`.

Each output must be the very one that the pipeline writes undisturbed, and nothing may be left when
all is over: no process, file, socket or thread, nor memory. Ends with exit code 1 otherwise.
"""

import argparse
import itertools
import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from specpipe.actors import Config, Pipeline, SamplingParams
from specpipe.actors.cluster import ray_session
from specpipe.config import RayConfig
from specpipe.machine import cpu_model, usable_cores
from specpipe.prompts import own_questions
from tests.storm import Storm, Victims
from tests.traces import traces

DIFFERENT = 20
"""Prompts, each with a seed of its own, half of them sampled, that take turns."""

AT_ONCE = 3
MOST_FILES = 8
"""More open files than before: what Ray keeps of each session for itself."""

MOST_MEGABYTES, EACH_RESTART = 20.0, 0.5
"""By how much memory may have grown in the storm. Ray remembers each actor that there was."""


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        identical, generations: how many outputs were the undisturbed ones, of how many.
        wrong: what the others were.
        struck: how often each fault was done.
        restarts: how often each worker was started again.
        seconds, undisturbed_seconds: that a generation took.
        megabytes: by which this program's memory grew in the storm.
        leaked: what was left when all was over.
    """

    generations: int
    identical: int = 0
    wrong: list[str] = field(default_factory=list)
    struck: dict[str, int] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    undisturbed_seconds: float = 0.0
    megabytes: float = 0.0
    leaked: dict[str, object] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether all is as it should be."""
        most = MOST_MEGABYTES + EACH_RESTART * sum(self.restarts.values())
        flat = self.megabytes <= most
        return self.identical == self.generations and flat and not self.leaked


Asked = tuple[str, SamplingParams]


class Answer(NamedTuple):
    """What is compared of a completion; its metrics, each step of it, would take the memory."""

    token_ids: list[int]
    finish_reason: str
    cause: str
    text: str


def all_asked(max_tokens: int) -> list[Asked]:
    """What is asked for, in turn."""
    return [
        (
            question.text,
            SamplingParams(
                max_tokens=max_tokens,
                temperature=0.8 * (number % 2),
                seed=number,
                ignore_eos=True,
            ),
        )
        for number, question in enumerate(own_questions()[:DIFFERENT])
    ]


def generate(pipeline: Pipeline, asked: Sequence[Asked]) -> list[Answer]:
    """Answers to all, some at once."""
    waiting, answers = iter(asked), list[Answer]()
    running = deque(pipeline.submit(*each) for each in itertools.islice(waiting, AT_ONCE))
    while running:
        done = running.popleft().result()
        answers.append(Answer(done.token_ids, done.finish_reason, done.cause, done.text))
        running.extend(pipeline.submit(*each) for each in itertools.islice(waiting, 1))
    return answers


def weather(pipeline: Pipeline, outcome: Outcome, asked: list[Asked], seed: int) -> None:
    """Let the pipeline answer undisturbed, then in a storm, and compare."""
    begun = time.monotonic()
    expected = generate(pipeline, asked)
    outcome.undisturbed_seconds = (time.monotonic() - begun) / len(asked)
    again = list(itertools.islice(itertools.cycle(asked), outcome.generations))
    pause_s = max(2.0, 2 * outcome.undisturbed_seconds)
    begun, before = time.monotonic(), traces().megabytes
    with Storm(pipeline, seed, pause_s) as storm:
        answers = generate(pipeline, again)
    outcome.seconds = (time.monotonic() - begun) / len(again)
    outcome.struck = dict(sorted(storm.struck.items()))
    if storm.error:
        outcome.wrong.append(f"the storm ended early: {storm.error!r}")
    for answer, reference in zip(answers, itertools.cycle(expected)):
        if answer.token_ids == reference.token_ids and answer.finish_reason == "length":
            outcome.identical += 1
        else:
            outcome.wrong.append(f"{answer.finish_reason} {answer.cause}: {answer.text!r:.80}")
    Victims(pipeline).wait_until_up(300)
    outcome.megabytes = traces().megabytes - before
    outcome.restarts = {role: w.incarnation - 1 for role, w in sorted(pipeline.workers.items())}


def run(config: Config, generations: int, max_tokens: int, seed: int) -> Outcome:
    """All of it."""
    outcome, asked = Outcome(generations), all_asked(max_tokens)
    for last in (False, True):  # what the first start brings for good is no leak of the storm
        before = traces()
        with ray_session(RayConfig()), Pipeline.launch(config) as pipeline:
            if last:
                weather(pipeline, outcome, asked, seed)
            else:
                generate(pipeline, asked[:AT_ONCE])
    deadline = time.monotonic() + 20  # the last processes take a moment
    while True:
        outcome.leaked = traces().more_than(before, megabytes=math.inf, files=MOST_FILES)
        if not outcome.leaked or time.monotonic() > deadline:
            return outcome
        time.sleep(0.2)


def report(outcome: Outcome, config: Config, max_tokens: int) -> str:
    """The outcome as Markdown."""
    draft = config.draft.model if config.draft else "no draft"
    lines = [
        "# Chaos",
        "",
        "Made by `make chaos`: generations while a thread kills and stops the workers at random",
        "moments, with the real models, actors and processes.",
        "",
        f"- {cpu_model()}, {len(usable_cores())} cores; {config.target.model} and {draft}, policy "
        f"{config.pipeline.policy}, {max_tokens} tokens each, {AT_ONCE} at once",
        f"- **{outcome.identical} of {outcome.generations} outputs identical** to the undisturbed "
        f"ones, of {DIFFERENT} prompts, half of them sampled at temperature 0.8",
        f"- {outcome.seconds:.2f} s a generation, undisturbed {outcome.undisturbed_seconds:.2f} s; "
        "restarts: " + ", ".join(f"{role} {count}" for role, count in outcome.restarts.items()),
        f"- memory of the embedding program: {outcome.megabytes:+.0f} MB in the storm",
        f"- left afterwards: {outcome.leaked or 'nothing'}",
        "",
        "| fault | times |",
        "|---|---|",
        *(f"| {fault} | {times} |" for fault, times in outcome.struck.items()),
        *(["", "What went wrong:", ""] + [f"- {line}" for line in outcome.wrong])
        * bool(outcome.wrong),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, print the report, and write it where that is wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config = Config().override(
        pipeline={"policy": "take_all"},  # elastic may let the draft rest
        ray={"hang_timeout_s": 2.0, "launch_timeout_s": 240.0},
    )
    outcome = run(config, options.generations, options.max_tokens, options.seed)
    text = report(outcome, config, options.max_tokens)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    sys.exit(not outcome.good)


if __name__ == "__main__":
    main()
