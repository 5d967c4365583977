"""`bench load`: as many in flight as it says, and figures that follow from what happened."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

import pytest

from specpipe.bench.load import Level, figures, identical, measure, requests
from specpipe.bench.load_report import document, draw, table
from specpipe.cli.main import cli
from specpipe.completion import Completion
from specpipe.config import Config
from specpipe.errors import SpecpipeError, UserError
from specpipe.metrics import RequestMetrics, Spans, merged
from specpipe.prompts import own_questions
from specpipe.sampling import SamplingParams


class Plays:
    """Answers each prompt after a hundredth of a second, and counts how many are at work."""

    def __init__(self, config: Config) -> None:
        self.config, self.now, self.most = config, 0, 0
        self._lock = threading.Lock()

    def submit(self, prompt: str, params: SamplingParams) -> "Future[Completion]":
        future: Future[Completion] = Future()
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        begun = time.monotonic()

        def end() -> None:
            with self._lock:
                self.now -= 1
            metrics = RequestMetrics(
                submitted=begun,
                first_token=begun + 0.005,
                finished=time.monotonic(),
                completion_tokens=params.max_tokens,
                verifying=Spans([begun], [begun + 0.005]),
            )
            reason = "error" if "fails" in prompt else "length"
            tokens = [len(prompt)]
            future.set_result(
                Completion("", tokens, reason, "out of order", 0, 0, [], None, metrics)
            )

        threading.Timer(0.01, end).start()
        return future


@pytest.fixture
def launched() -> list[Plays]:
    return []


def measured(launched: list[Plays], prompts: list[str]) -> list[Level]:
    @contextmanager
    def launch(config: Config) -> Iterator[Plays]:
        launched.append(Plays(config))
        yield launched[-1]

    params = SamplingParams(max_tokens=20, seed=1, ignore_eos=True)
    return measure(launch, {"it": Config()}, [1, 3], prompts, params, say=lambda _: None)


def test_so_many_are_in_flight_and_no_more(launched: list[Plays]) -> None:
    """A level that is named four and keeps one in flight would look like a flat line."""
    one, three = measured(launched, [f"prompt {i}" for i in range(7)])
    assert [each.most for each in launched] == [1, 3]
    assert [each.config.pipeline.max_num_seqs for each in launched] == [1, 3]
    assert one.tokens == three.tokens == 140
    assert len(one.latencies) == 7
    assert one.seconds > three.seconds
    assert 0 < one.target_busy < 1
    assert identical([one, three])


def test_a_request_that_fails_ends_the_run(launched: list[Plays]) -> None:
    """A level whose requests end at once would be the fastest of all."""
    with pytest.raises(SpecpipeError, match="out of order"):
        measured(launched, ["fine", "this fails"])


def level(in_flight: int, **changes: object) -> Level:
    whole = Level(
        "it", in_flight, 100, 10.0 / in_flight, [1.0, 2.0, 9.0], [0.1], 0.9, 50, 3, 4, ["a"]
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_answers_that_differ_are_told(tmp_path) -> None:
    """Speed by another output."""
    same, other = level(1), level(8, answers=["b"])
    assert "All answers are the same" in table([same, level(8)])
    assert "ANSWERS DIFFER" in table([same, other])
    assert not figures([same, other])["identical"]
    text = document([same, level(8)], {"target": "t"}, "load.png")
    assert "| 8 | 80.0 | 8.00 | 2.00 s | 9.00 s |" in text
    draw([same, level(8)], tmp_path / "load.png")
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")


def test_no_two_prompts_begin_alike() -> None:
    """What one leaves in a slot would be read by the next in no time."""
    found = requests(own_questions(), 60)
    assert len({prompt[:12] for prompt in found[24:]}) > 20
    assert len(set(found)) == 60


def test_time_in_which_several_work_counts_once() -> None:
    """Eight verdicts of one pass are no eight passes."""
    whole = merged([Spans([0.0, 3.0], [2.0, 4.0]), Spans([0.0, 1.0], [0.5, 2.5])])
    assert whole.total() == pytest.approx(3.5)


@pytest.mark.parametrize("given", ["0", "x", "1,", "257"])
def test_levels_that_cannot_be_are_named(given: str) -> None:
    with pytest.raises(UserError, match=r"--in-flight .*: give numbers from 1 to 256"):
        cli.main(["bench", "load", "--in-flight", given], standalone_mode=False)


def test_requests_of_equal_lengths_are_cut_from_longer_ones() -> None:
    """Latencies of long and short prompts beside each other say nothing of fairness."""
    found = requests(own_questions(), 60, words=50)
    assert {len(text.split()) for text in found if not text.startswith("Task ")} == {50}
    assert len(set(found)) == 60
    with pytest.raises(UserError, match="no prompt has 5000 words: ask for fewer"):
        requests(own_questions(), 2, words=5000)
