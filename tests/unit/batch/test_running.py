"""Rows at work: in order, a bounded number of them, and nothing waits for what it need not."""

import json
import os
import random
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from specpipe.batch.records import Records, Tally
from specpipe.batch.rows import read_rows
from specpipe.batch.running import Batch
from specpipe.errors import SpecpipeError, UserError, WorkerError
from tests.unit.batch.fakes import PARAMS, completion, rows_of

SEQS = 2
MOST_RUNNING, MOST_HELD = 2 * SEQS, 16 * SEQS


class Pool:
    """Answers in threads, each after a time of its own: the text is what a function makes of it."""

    def __init__(self, answer):
        self.alive = True
        self._answer, self._threads = answer, ThreadPoolExecutor(2 * MOST_RUNNING)

    def submit(self, prompt, params):
        return self._threads.submit(self._answer, prompt, params)


class ByHand:
    """Answers when it is told to."""

    def __init__(self):
        self.alive = True
        self.futures = []

    def submit(self, prompt, params):
        self.futures.append(Future())
        return self.futures[-1]

    def finish(self, *numbers):
        for number in numbers:
            self.futures[number].set_result(completion(f"t{number}", PARAMS))


def encode(asked):
    if asked.prompt == "refused":
        raise UserError("the prompt is too long: shorten it")
    return list(asked.prompt.encode())


def run(answerer, rows, path, told=lambda: None):
    tally = Tally()
    with Records.open(str(path), resume=True) as records:
        Batch(answerer, encode, records, max_num_seqs=SEQS).run(rows, tally, told)
    return tally


def written(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def background(tmp_path):
    """A batch in a thread of its own, with rows that one can see being read; ends with the test."""

    class Running:
        answerer = ByHand()
        path = tmp_path / "out"
        read = 0
        open = True

        def rows(self):
            for number, row in enumerate(rows_of(*({"prompt": f"p{i}"} for i in range(1000)))):
                if not self.open:
                    return
                self.read = number + 1
                yield row

        def end(self):
            """No more rows; all that were begun are answered."""
            self.open = False
            until(lambda: self.finish_all() or not self.thread.is_alive())

        def finish_all(self):
            for number, future in enumerate(list(self.answerer.futures)):
                if not future.done():
                    self.answerer.finish(number)

    running = Running()
    running.thread = threading.Thread(
        target=run, args=(running.answerer, running.rows(), running.path)
    )
    running.thread.start()
    yield running
    running.end()
    running.thread.join()


def test_records_are_in_order_whatever_finishes_first(tmp_path):
    """The answer to another question; a row that is lost between threads."""
    times = random.Random(0)
    seconds = [times.random() * 0.01 for _ in range(200)]

    def answer(prompt, params):
        text = bytes(prompt).decode()
        time.sleep(seconds[int(text)])
        return completion(text, params)

    said = [{"prompt": str(i)} if i % 7 else {"prompt": 3} for i in range(200)]
    tally = run(Pool(answer), rows_of(*said), tmp_path / "out")
    records = written(tmp_path / "out")
    assert [record["index"] for record in records] == list(range(200))
    for i, record in enumerate(records):
        assert record["text"] == (str(i) if i % 7 else "")
        assert (record["error"] is None) == bool(i % 7)
    assert (tally.rows, tally.errors) == (200, 29)
    assert (tally.tokens, tally.sent, tally.accepted) == (171 * 8, 171 * 6, 171 * 3)


def test_few_rows_are_submitted_and_read_at_a_time(background):
    """A million rows in memory, or in the coordinator's queue."""
    until(lambda: background.read == MOST_RUNNING + SEQS)
    time.sleep(0.05)
    assert len(background.answerer.futures) == MOST_RUNNING
    assert background.read == MOST_RUNNING + SEQS
    background.answerer.finish(1)
    until(lambda: len(background.answerer.futures) == MOST_RUNNING + 1)


def test_rows_wait_for_the_oldest_only_up_to_a_bound(background):
    """One endless answer, and all others held in memory behind it."""
    futures = background.answerer.futures
    for number in range(1, MOST_HELD):
        until(lambda number=number: len(futures) > number)
        background.answerer.finish(number)
    until(lambda: background.read == MOST_HELD + SEQS)
    time.sleep(0.05)
    assert len(futures) == MOST_HELD
    assert written(background.path) == []
    background.answerer.finish(0)
    until(lambda: len(written(background.path)) == MOST_HELD)


def test_a_record_is_written_and_synced_while_the_next_row_has_not_come(tmp_path):
    """A program that waits for an answer before it asks again would wait for ever."""
    reading, writing = os.pipe()
    answerer = ByHand()
    with (
        open(reading, "rb") as pipe,
        Records.open(str(tmp_path / "out"), resume=False) as records,
        open(writing, "wb", buffering=0) as source,
    ):
        batch = Batch(answerer, encode, records, max_num_seqs=SEQS)
        rows = read_rows(pipe, PARAMS, "")
        args = (rows, Tally(), lambda: None)
        thread = threading.Thread(target=batch.run, args=args, daemon=True)
        thread.start()
        for number in range(2):
            source.write(b'{"prompt": "a"}\n')
            until(lambda number=number: len(answerer.futures) > number)
            answerer.finish(number)
            until(lambda number=number: len(written(tmp_path / "out")) == number + 1)
        until(lambda: not records.unsynced)
        source.close()
        thread.join()


def test_what_the_tokenizer_refuses_is_a_record(tmp_path):
    """A prompt that is too long ends the run."""
    rows = rows_of({"prompt": "a"}, {"prompt": "refused", "id": 7}, {"prompt": "b"})
    tally = run(Pool(lambda prompt, params: completion("x", params)), rows, tmp_path / "out")
    records = written(tmp_path / "out")
    assert records[1]["error"] == "line 2: the prompt is too long: shorten it"
    assert records[1]["id"] == 7
    assert (tally.rows, tally.errors) == (3, 1)


def test_one_answer_s_error_does_not_end_the_others(tmp_path):
    def answer(prompt, params):
        failed = bytes(prompt) == b"1"
        return completion("x", params, *(("error", "the target failed: nan") if failed else ()))

    rows = rows_of(*({"prompt": str(i)} for i in range(4)))
    run(Pool(answer), rows, tmp_path / "out")
    errors = [record["error"] for record in written(tmp_path / "out")]
    assert errors == [None, "the target failed: nan", None, None]


def test_a_lost_target_ends_the_run_and_is_no_row_s_fault(tmp_path):
    """A million rows that get an error each within a second, which no later run would mend."""
    rows = [{"prompt": str(i)} for i in range(40)]
    pool = Pool(None)

    def dying(prompt, params):
        if int(bytes(prompt)) < 10:
            return completion("x", params)
        pool.alive = False
        return completion("x", params, "error", "the target cannot come back: killed")

    pool._answer = dying
    with pytest.raises(WorkerError, match="cannot come back"):
        run(pool, rows_of(*rows), tmp_path / "out")
    records = written(tmp_path / "out")
    assert [record["index"] for record in records] == list(range(10))
    assert {record["error"] for record in records} == {None}


def test_an_interruption_cancels_what_runs_and_keeps_what_was_written(tmp_path):
    """Requests that nobody waits for any more, and that the next ones wait for."""
    answerer = ByHand()

    def interrupted():
        raise KeyboardInterrupt

    def finish_the_first():
        until(lambda: len(answerer.futures) == MOST_RUNNING)
        answerer.finish(0)

    with Records.open(str(tmp_path / "out"), resume=False) as records:
        batch = Batch(answerer, encode, records, max_num_seqs=SEQS)
        rows = rows_of(*({"prompt": str(i)} for i in range(40)))
        threading.Thread(target=finish_the_first, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            batch.run(rows, Tally(), interrupted)
        assert not records.unsynced
    assert len(written(tmp_path / "out")) == 1
    assert all(future.cancelled() for future in answerer.futures[1:])
    until(lambda: "specpipe-batch" not in {thread.name for thread in threading.enumerate()})


def test_rows_that_cannot_be_read_on_end_the_run(tmp_path):
    """A reader that dies in its thread, and a run that waits for it for ever."""

    def rows():
        yield from rows_of({"prompt": "a"})
        raise SpecpipeError("cannot read the rows behind line 1: Input/output error")

    with pytest.raises(SpecpipeError, match="behind line 1"):
        run(Pool(lambda prompt, params: completion("x", params)), rows(), tmp_path / "out")
