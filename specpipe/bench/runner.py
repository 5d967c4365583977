"""Lets all contenders answer all prompts, one after the other, each in its turn.

For each prompt all contenders take turns, in an order drawn anew, so that a change in the machine's
speed, and whatever the one before left in caches, meets all alike. Each repeat begins with fresh
processes: two of them differ by some percent for as long as they live, by where their memory lies.
Nothing is measured at the same time; who has no turn sleeps.

This module doesn't know what answers: what it is given for a layout may be a pipeline or a peer.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from statistics import fmean
from typing import Protocol

from specpipe.bench.journal import Journal
from specpipe.bench.measurement import Figures, Measurement
from specpipe.bench.scenarios import Contender
from specpipe.completion import Completion
from specpipe.errors import SpecpipeError
from specpipe.sampling import SamplingParams

_WARM_UPS = 1
_LEARNING = 3
"""Answers before any that counts: of each contender, and of the pipeline, which learns."""


class Answerer(Protocol):
    """What answers prompts for one layout."""

    def answer(self, way: str, prompt: Sequence[int], params: SamplingParams) -> Figures:
        """Answer a prompt, of token ids, in one of the ways that this layout has."""


Start = Callable[[str], AbstractContextManager[Answerer]]
"""Starts the processes of a layout, and ends them."""


class Pipeline(Protocol):
    """What is needed of a pipeline (that of actors/, which this module must not import)."""

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams
    ) -> list[Completion]:
        """Complete all prompts."""

    def use_policy(self, name: str) -> None:
        """Go by another dispatch rule from now on."""


class PipelineAnswerer:
    """An Answerer that is a pipeline; the way is the policy's name."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def answer(self, way: str, prompt: Sequence[int], params: SamplingParams) -> Figures:
        """See Answerer. What was in the caches before is overwritten first."""
        self._pipeline.use_policy(way)
        other = 1 if prompt[0] == 0 else 0
        self._pipeline.generate([[other]], replace(params, max_tokens=1))
        (completion,) = self._pipeline.generate([prompt], params)
        return Figures.of(completion)


class Progress(Protocol):
    """Hears how far a run has come."""

    def say(self, text: str) -> None:
        """Something begins that takes a while."""

    def step(self, done: int, of: int, seconds_left: float) -> None:
        """A measurement was made."""


class Runner:
    """Measures what a journal lacks.

    Args:
        contenders: who answers.
        prompts: token ids.
        params: of all answers, with a seed; each repeat takes the next one.
        repeats: how often.
    """

    def __init__(
        self,
        contenders: Sequence[Contender],
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        repeats: int,
    ) -> None:
        assert params.seed is not None
        self._contenders, self._prompts = contenders, prompts
        self._params, self._repeats = params, repeats
        self._seed = params.seed

    @property
    def keys(self) -> list[tuple[str, int, int]]:
        """All measurements that there are to be."""
        return [
            (contender.name, prompt, repeat)
            for repeat in range(self._repeats)
            for prompt in range(len(self._prompts))
            for contender in self._contenders
        ]

    def run(self, journal: Journal, start: Start, progress: Progress) -> None:
        """Make all measurements that are not in the journal, and append them to it.

        Raises:
            SpecpipeError: when an answer ends with an error. What was measured stays.
        """
        clock = _Clock(self.keys, journal)
        for repeat in range(self._repeats):
            missing = {key for key in self.keys if key[2] == repeat} - journal.done.keys()
            names = {name for name, _, _ in missing}
            due = [contender for contender in self._contenders if contender.name in names]
            with ExitStack() as stack:
                answerers: dict[str, Answerer] = {}
                for layout in dict.fromkeys(contender.layout for contender in due):
                    progress.say(f"repeat {repeat + 1} of {self._repeats}: starting {layout}")
                    answerers[layout] = stack.enter_context(start(layout))
                self._warm_up(due, answerers, progress)
                for contender, prompt in self._turns(due, repeat):
                    key = contender.name, prompt, repeat
                    if key in missing:
                        begun = time.monotonic()
                        figures = self._answer(contender, answerers, prompt, repeat)
                        journal.append(Measurement(*key, figures))
                        clock.note(contender.name, time.monotonic() - begun)
                        progress.step(clock.total - clock.missing.total(), clock.total, clock.left)

    def _turns(self, due: Sequence[Contender], repeat: int) -> Iterator[tuple[Contender, int]]:
        """Who answers which prompt, in order; the same for each run."""
        for prompt in range(len(self._prompts)):
            order = list(due)
            random.Random(f"{self._seed} {repeat} {prompt}").shuffle(order)
            for contender in order:
                yield contender, prompt

    def _warm_up(
        self, due: Sequence[Contender], answerers: dict[str, Answerer], progress: Progress
    ) -> None:
        for contender in due:
            progress.say(f"warming up {contender.name}")
            for i in range(_LEARNING if contender.scenario == "C" else _WARM_UPS):
                self._answer(contender, answerers, i % len(self._prompts), 0)

    def _answer(
        self, contender: Contender, answerers: dict[str, Answerer], prompt: int, repeat: int
    ) -> Figures:
        params = replace(self._params, seed=self._seed + repeat)
        answerer = answerers[contender.layout]
        figures = answerer.answer(contender.way, self._prompts[prompt], params)
        if figures.finish_reason == "error" or not figures.tokens:
            raise SpecpipeError(f"{contender.name} wrote nothing for prompt {prompt + 1}")
        return figures


class _Clock:
    """Estimates the time left, from how long each contender took so far in this run."""

    def __init__(self, keys: Sequence[tuple[str, int, int]], journal: Journal) -> None:
        self.total = len(keys)
        self.missing = Counter(name for name, *which in keys if (name, *which) not in journal.done)
        self._seconds: dict[str, list[float]] = {}

    def note(self, name: str, seconds: float) -> None:
        """A contender took so long for a prompt."""
        self._seconds.setdefault(name, []).append(seconds)
        self.missing[name] -= 1

    @property
    def left(self) -> float:
        """Seconds."""
        means = {name: fmean(found) for name, found in self._seconds.items()}
        usual = fmean(means.values())
        return sum(count * means.get(name, usual) for name, count in self.missing.items())
