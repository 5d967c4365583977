"""Mixed load for an hour: `make soak`. Memory and open files stay flat, and the speed steady.

What users do all at once: single answers, batches that are submitted faster than they can be
answered, conversations, streams that are left early, streams that nobody reads, and input that is
refused. Each minute the processes are looked at. Ends with exit code 1 if one of them grows, or
the pipeline slows down.
"""

import argparse
import itertools
import os
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from specpipe.actors import Config, Pipeline, SamplingParams
from specpipe.errors import UserError
from specpipe.machine import cpu_model, usable_cores
from specpipe.prompts import own_questions
from tests.storm import Victims

WARM_UP = 0.25
"""Share of the time until caches, buffers and tables have come to their size."""

MOST_GROWTH_MB = 30.0
"""From the end of the warm-up to the end, of any process."""

MOST_FILES = 4
MOST_SLOWDOWN = 0.2
"""Share of the speed that the last third may lack of the second."""

SHORT = SamplingParams(max_tokens=24, ignore_eos=True)
LONG = SamplingParams(max_tokens=200, ignore_eos=True)


@dataclass(frozen=True)
class Sample:
    """A look at everything.

    Attributes:
        minute: since the beginning.
        tokens_per_second: committed since the last look, by all kinds of load together.
        megabytes, files: of each process, by name.
    """

    minute: float
    tokens_per_second: float
    megabytes: dict[str, float]
    files: dict[str, int]


class Load:
    """Users of a pipeline, each in a thread.

    Args:
        pipeline: works for them.
        seed: of what they do.
    """

    def __init__(self, pipeline: Pipeline, seed: int) -> None:
        self._pipeline, self._seed = pipeline, seed
        self._texts = [question.text for question in own_questions()]
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.done: Counter[str] = Counter()
        self.tokens = 0
        self.errors: list[str] = []
        users = (self._ask, self._flood, self._talk, self._leave, self._ignore, self._err)
        self._threads = [threading.Thread(target=self._repeat, args=(user,)) for user in users]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, user: Callable[[random.Random], int]) -> None:
        rng, name = random.Random(f"{self._seed} {user.__name__}"), user.__name__.lstrip("_")
        while not self._over.is_set():
            try:
                tokens = user(rng)
            except Exception as error:
                self.errors.append(f"{name}: {error!r}")
                return
            with self._lock:
                self.tokens += tokens
                self.done[name] += 1
            self._over.wait(rng.uniform(0, 0.5))

    def _ask(self, rng: random.Random) -> int:
        """One answer at a time, of any kind."""
        params = SamplingParams(
            max_tokens=rng.choice((8, 64, 150)),
            temperature=rng.choice((0.0, 0.7, 1.0)),
            seed=rng.randrange(2**32),
            logprobs=rng.choice((None, None, 5)),
            repetition_penalty=rng.choice((1.0, 1.2)),
            stop=rng.choice(((), (".",))),
        )
        (completion,) = self._pipeline.generate([rng.choice(self._texts)], params)
        return len(completion.token_ids)

    def _flood(self, rng: random.Random) -> int:
        """More at once than there are slots."""
        completions = self._pipeline.generate(rng.sample(self._texts, 10), SHORT)
        return sum(len(completion.token_ids) for completion in completions)

    def _talk(self, rng: random.Random) -> int:
        """A conversation, whose next turn begins as the last one ended."""
        turns: list[dict[str, str]] = []
        tokens = 0
        for text in rng.sample(self._texts, 3):
            turns.append({"role": "user", "content": text})
            (completion,) = self._pipeline.generate([turns], SHORT)
            turns.append({"role": "assistant", "content": completion.text})
            tokens += len(completion.token_ids)
        return tokens

    def _leave(self, rng: random.Random) -> int:
        """A reader that goes away in the middle."""
        with self._pipeline.stream(rng.choice(self._texts), LONG) as stream:
            for _ in itertools.islice(stream, rng.randrange(60)):
                pass
        return len(stream.completion.token_ids)

    def _ignore(self, rng: random.Random) -> int:
        """A stream that nobody reads until it is over."""
        stream = self._pipeline.stream(rng.choice(self._texts), LONG)
        self._pipeline.generate([rng.choice(self._texts)], LONG)
        return len(stream.completion.token_ids) + LONG.max_tokens

    def _err(self, rng: random.Random) -> int:
        """What is refused."""
        for prompt in ("", [-1], [10**9], "word " * 10_000):
            try:
                self._pipeline.stream(prompt, raw=True)
            except UserError:
                continue
            raise AssertionError(f"{prompt!r:.40} was taken")
        time.sleep(rng.uniform(1, 3))
        return 0


def fill(pipeline: Pipeline, sequences: int) -> None:
    """Let each slot hold as much as it ever will: memory comes when it is used, and stays."""
    texts = sorted((question.text for question in own_questions()), key=len, reverse=True)
    turns: list[dict[str, str]] = []
    for text in texts[:3]:
        turns += [{"role": "user", "content": text}, {"role": "assistant", "content": "word " * 30}]
    pipeline.generate([turns[:-1]] * sequences, LONG)


def processes(pipeline: Pipeline) -> dict[str, psutil.Process]:
    """This program and those that work for it, by name."""
    victims, hub = Victims(pipeline), pipeline._hub._process.pid
    found = {"program": psutil.Process()}
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == hub and process.status() != psutil.STATUS_ZOMBIE:
                found["hub"] = process
    for role in sorted(pipeline.workers):
        pid = victims.pid(role)
        assert pid is not None
        found[role] = psutil.Process(pid)
    return found


def watch(load: Load, found: dict[str, psutil.Process], minutes: float) -> list[Sample]:
    """Look at everything once a minute, or at least 20 times."""
    every = min(60.0, minutes * 60 / 20)
    samples: list[Sample] = []
    begun = before = time.monotonic()
    tokens = 0
    while before - begun < minutes * 60 and not load.errors:
        time.sleep(every)
        now, total = time.monotonic(), load.tokens
        samples.append(
            Sample(
                (now - begun) / 60,
                (total - tokens) / (now - before),
                {name: process.memory_info().rss / 1e6 for name, process in found.items()},
                {name: process.num_fds() for name, process in found.items()},
            )
        )
        print(row(samples[-1]), flush=True)
        before, tokens = now, total
    return samples


def judge(samples: Sequence[Sample]) -> list[str]:
    """What is not as it should be."""
    steady = samples[int(len(samples) * WARM_UP) :]
    third = max(1, len(steady) // 3)
    wrong = []
    for name in steady[0].megabytes:
        begin = statistics.median(sample.megabytes[name] for sample in steady[:third])
        end = statistics.median(sample.megabytes[name] for sample in steady[-third:])
        if end - begin > MOST_GROWTH_MB:
            wrong.append(f"the memory of the {name} grew from {begin:.0f} to {end:.0f} MB")
        files = [sample.files[name] for sample in steady]
        if statistics.median(files[-third:]) - statistics.median(files[:third]) > MOST_FILES:
            wrong.append(f"the {name} holds more and more files: {files}")
    speeds = [sample.tokens_per_second for sample in steady]
    begin, end = statistics.median(speeds[:-third]), statistics.median(speeds[-third:])
    if end < begin * (1 - MOST_SLOWDOWN):
        wrong.append(f"it slowed down from {begin:.1f} to {end:.1f} tokens/s")
    return wrong


def row(sample: Sample) -> str:
    """A line of the report's table."""
    each = [f"{sample.megabytes[name]:.0f}, {sample.files[name]}" for name in sample.megabytes]
    return f"| {sample.minute:.1f} | {sample.tokens_per_second:.1f} | {' | '.join(each)} |"


def report(samples: Sequence[Sample], load: Load, wrong: list[str], minutes: float) -> str:
    """All of it as Markdown."""
    names = list(samples[0].megabytes)
    done = ", ".join(f"{name} {count}" for name, count in sorted(load.done.items()))
    lines = [
        "# Soak",
        "",
        f"Made by `make soak MINUTES={minutes:g}`: mixed load, a user of each kind in a thread,",
        "all at once; see tests/soak.py for what they do.",
        "",
        f"- {cpu_model()}, {len(usable_cores())} cores, the default pair",
        f"- {load.tokens} tokens; {done}",
        f"- wrong: {'; '.join(wrong) or 'nothing; memory and files are flat, the speed is steady'}",
        "",
        "Memory in MB and open files of each process, and what all users together were given:",
        "",
        f"| minute | tokens/s | {' | '.join(names)} |",
        f"|{'---|' * (2 + len(names))}",
        *map(row, samples),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, report, and say by the exit code whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config = Config()
    with Pipeline.launch(config) as pipeline:
        fill(pipeline, config.pipeline.max_num_seqs)
        with Load(pipeline, options.seed) as load:
            samples = watch(load, processes(pipeline), options.minutes)
    wrong = [*load.errors, *judge(samples)]
    text = report(samples, load, wrong, options.minutes)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
