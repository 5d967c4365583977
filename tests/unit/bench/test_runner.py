"""Who answers when: all in turn, nobody twice, and after an interruption only what is missing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from specpipe.bench.journal import Journal
from specpipe.bench.measurement import Figures
from specpipe.bench.runner import Answerer, PipelineAnswerer, Runner
from specpipe.bench.scenarios import contenders
from specpipe.sampling import SamplingParams
from tests.unit.bench.runs import figures

PROMPTS = [[1], [2], [3]]
CONTENDERS = contenders(("A", "C", "S"), "elastic", (2, 4))


class Stage:
    """Answerers that write down what they are asked, and stop after so many answers."""

    def __init__(self, stop_after: int = 10_000) -> None:
        self.asked: list[tuple[str, str, int, int | None]] = []
        self.running: set[str] = set()
        self._left = stop_after

    @contextmanager
    def start(self, layout: str) -> Iterator[Answerer]:
        stage = self

        class One:
            def answer(self, way: str, prompt: Sequence[int], params: SamplingParams) -> Figures:
                if not stage._left:
                    raise KeyboardInterrupt
                stage._left -= 1
                stage.asked.append((layout, way, prompt[0], params.seed))
                return figures(10.0)

        assert layout not in self.running
        self.running.add(layout)
        yield One()
        self.running.remove(layout)


class Silent:
    def __init__(self) -> None:
        self.steps: list[tuple[int, int, float]] = []

    def say(self, text: str) -> None:
        pass

    def step(self, done: int, of: int, seconds_left: float) -> None:
        self.steps.append((done, of, seconds_left))


def runner(repeats: int = 2) -> Runner:
    return Runner(CONTENDERS, PROMPTS, SamplingParams(seed=5), repeats)


def play(folder: Path, stage: Stage, repeats: int = 2) -> Silent:
    progress = Silent()
    with Journal(folder, {}) as journal:
        runner(repeats).run(journal, stage.start, progress)
    return progress


WARM_UP = [("target", "serial:0"), *[("pair", "elastic")] * 3]
WARM_UP += [("pair", "serial:2"), ("pair", "serial:4")]


def test_all_take_turns_on_each_prompt_with_the_same_seeds(tmp_path: Path) -> None:
    """A machine that slows down in the middle would slow the one that comes last."""
    stage = Stage()
    progress = play(tmp_path, stage)
    each = len(WARM_UP) + len(PROMPTS) * len(CONTENDERS)
    assert len(stage.asked) == 2 * each
    for repeat in range(2):
        asked = stage.asked[repeat * each : (repeat + 1) * each]
        assert [(layout, way) for layout, way, *_ in asked[: len(WARM_UP)]] == WARM_UP
        counted = asked[len(WARM_UP) :]
        orders = []
        for i, prompt in enumerate(PROMPTS):
            turn = counted[i * len(CONTENDERS) : (i + 1) * len(CONTENDERS)]
            assert {asked[2] for asked in turn} == {prompt[0]}
            assert {asked[3] for asked in turn} == {5 + repeat}
            orders.append([way for _, way, *_ in turn])
        assert len({frozenset(order) for order in orders}) == 1
        assert len({tuple(order) for order in orders}) > 1, "always in the same order"
    assert [done for done, *_ in progress.steps] == list(range(1, 25))
    assert progress.steps[-1][2] == 0
    assert not stage.running


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """All of it measured again, or some of it twice."""
    stage = Stage(stop_after=len(WARM_UP) + 7)
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path, stage, repeats=1)
    with Journal(tmp_path, {}) as journal:
        done = set(journal.done)
    assert len(done) == 7
    rest = Stage()
    progress = play(tmp_path, rest, repeats=1)
    assert len(rest.asked) == len(WARM_UP) + 12 - 7
    assert progress.steps[0][:2] == (8, 12)
    with Journal(tmp_path, {}) as journal:
        assert set(journal.done) == set(runner(1).keys)
    again = Stage()
    play(tmp_path, again, repeats=1)
    assert again.asked == [], "a finished run starts nothing"


def test_a_prompt_does_not_find_itself_in_the_cache() -> None:
    """The second to answer a prompt would not have to read it."""
    calls: list[object] = []

    class Fake:
        def use_policy(self, name: str) -> None:
            calls.append(name)

        def generate(self, prompts, params):
            calls.append((prompts, params.max_tokens))
            if len(calls) > 2:
                raise StopIteration
            return []

    with pytest.raises(StopIteration):
        PipelineAnswerer(Fake()).answer("serial:2", [0, 8], SamplingParams(max_tokens=9, seed=1))
    assert calls == ["serial:2", ([[1]], 1), ([[0, 8]], 9)]
