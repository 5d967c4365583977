"""How much several sequences at once write, and how long each of them takes.

So many are kept in flight: when one ends, the next begins. Each number of them gets processes of
its own, so that no cache holds what is to be read. The same requests are answered at each, so that
the answers can be compared: beside whom a sequence is written must not change it.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Protocol

from specpipe.bench.measurement import answer_hash
from specpipe.completion import Completion
from specpipe.config import Config
from specpipe.errors import SpecpipeError, UserError
from specpipe.metrics import merged
from specpipe.prompts import Question
from specpipe.sampling import SamplingParams

_WARM_UP_TOKENS = 16


class Pipeline(Protocol):
    """What is needed of a pipeline (that of actors/, which this module must not import)."""

    def submit(self, prompt: str, params: SamplingParams) -> "Future[Completion]":
        """Begin to complete one prompt."""


Launch = Callable[[Config], AbstractContextManager[Pipeline]]
"""Starts a pipeline, and ends it."""


@dataclass(frozen=True, slots=True)
class Level:
    """What so many sequences in flight came to.

    Attributes:
        way: who wrote.
        in_flight: sequences.
        tokens: written in all, in so many `seconds`.
        latencies: seconds of each request, in the order of their ends.
        first_tokens: the same, to the first token.
        target_busy: share of the time in which the target worked.
        forwards: passes of the target that judged something.
        accepted, sent: guesses.
        answers: a hash of each answer, in the order of the requests.
    """

    way: str
    in_flight: int
    tokens: int
    seconds: float
    latencies: list[float]
    first_tokens: list[float]
    target_busy: float
    forwards: int
    accepted: int
    sent: int
    answers: list[str]

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    def latency(self, share: float) -> float:
        """What this share of the requests took at most; seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def requests(questions: Sequence[Question], count: int, words: int | None = None) -> list[str]:
    """So many prompts, no two of which begin alike.

    Args:
        questions: to take in turn.
        count: of the prompts.
        words: of each, for equal lengths; questions that have fewer are left out.

    Raises:
        UserError: if none is left.
    """
    texts = [question.text for question in questions]
    if words is not None:
        texts = [" ".join(text.split()[:words]) for text in texts if len(text.split()) >= words]
    if not texts:
        raise UserError(f"no prompt has {words} words: ask for fewer, or name longer prompts")
    cycles = [divmod(i, len(texts)) for i in range(count)]
    return [f"Task {cycle + 1}: {texts[i]}" if cycle else texts[i] for cycle, i in cycles]


def measure(
    launch: Launch,
    configs: dict[str, Config],
    levels: Sequence[int],
    prompts: Sequence[str],
    params: SamplingParams,
    *,
    say: Callable[[str], None],
) -> list[Level]:
    """Answer all prompts in each way, with each number of sequences in flight.

    Args:
        launch: starts pipelines.
        configs: by the way's name.
        levels: numbers of sequences.
        prompts: texts.
        params: of all answers; with a seed, and so that all get equally long.
        say: hears what begins.

    Raises:
        SpecpipeError: when a request ends with an error.
    """
    found = []
    for way, config in configs.items():
        for in_flight in levels:
            say(f"{way}, {in_flight} in flight")
            room = replace(config, pipeline=replace(config.pipeline, max_num_seqs=in_flight))
            with launch(room) as pipeline:
                _answer(
                    pipeline,
                    [f"Warm up, {i}" for i in range(2 * in_flight)],
                    replace(params, max_tokens=_WARM_UP_TOKENS),
                    in_flight,
                )
                found.append(_level(way, in_flight, pipeline, prompts, params))
    return found


def _level(
    way: str, in_flight: int, pipeline: Pipeline, prompts: Sequence[str], params: SamplingParams
) -> Level:
    begun = time.monotonic()
    completions = _answer(pipeline, prompts, params, in_flight)
    seconds = time.monotonic() - begun
    metrics = [completion.metrics for completion in completions]
    busy = merged([spans for each in metrics for spans in (each.verifying, each.prefilling)])
    passes = {moment for each in metrics for moment in each.verifying.begun}
    ended = sorted(metrics, key=lambda each: each.finished or 0.0)
    return Level(
        way=way,
        in_flight=in_flight,
        tokens=sum(each.completion_tokens for each in metrics),
        seconds=seconds,
        latencies=[each.seconds for each in ended],
        first_tokens=[each.time_to_first_token or 0.0 for each in ended],
        target_busy=busy.total() / seconds,
        forwards=len(passes),
        accepted=sum(each.accepted for each in metrics),
        sent=sum(each.sent for each in metrics),
        answers=[answer_hash(completion.token_ids) for completion in completions],
    )


def _answer(
    pipeline: Pipeline, prompts: Sequence[str], params: SamplingParams, in_flight: int
) -> list[Completion]:
    """All completions, in the order of the prompts; never more than so many at a time."""
    running: dict[Future[Completion], int] = {}
    completions: dict[int, Completion] = {}
    try:
        for number, prompt in enumerate(prompts):
            running[pipeline.submit(prompt, params)] = number
            if len(running) == in_flight:
                _collect(running, completions)
        while running:
            _collect(running, completions)
    finally:
        for future in running:
            future.cancel()
    return [completions[number] for number in range(len(prompts))]


def _collect(running: dict[Future[Completion], int], completions: dict[int, Completion]) -> None:
    """Wait until at least one has ended, and take those that have."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        completion = completions[running.pop(future)] = future.result()
        if completion.finish_reason == "error":
            raise SpecpipeError(completion.cause)


def figures(levels: Sequence[Level]) -> dict[str, Any]:
    """Everything measured, as plain values."""
    return {
        "levels": [
            asdict(level)
            | {
                "tokens_per_second": level.rate,
                "latency_median_s": median(level.latencies),
                "latency_p99_s": level.latency(0.99),
            }
            for level in levels
        ],
        "identical": identical(levels),
    }


def identical(levels: Sequence[Level]) -> bool:
    """Whether each request was answered alike, beside whomever and by whomever."""
    return all(level.answers == levels[0].answers for level in levels)
