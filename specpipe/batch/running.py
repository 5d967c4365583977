"""A batch at work: several rows at a time, their records in order, memory that stays flat.

This module doesn't know what answers, only that it takes a request and gives a future for it.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from enum import Enum, auto
from typing import Protocol

from specpipe.batch.records import SYNC_EVERY_S, Records, Tally, answer_record, error_record
from specpipe.batch.rows import Asked, Row
from specpipe.completion import Completion
from specpipe.errors import UserError, WorkerError
from specpipe.pair import Prompt
from specpipe.sampling import SamplingParams

_SUBMITTED = 2  # requests handed in, for each that is answered at a time: no slot waits for us
_READ = 1  # rows read and encoded ahead of them
_HELD = 16  # rows from the oldest unfinished one on that were begun; later ones wait


class Answerer(Protocol):
    """What a batch needs of a pipeline."""

    @property
    def alive(self) -> bool:
        """Whether requests can still be answered."""

    def submit(self, prompt: Prompt, params: SamplingParams) -> "Future[Completion]":
        """Begin to complete a prompt; cancelling the future ends the request."""


Encode = Callable[[Asked], list[int]]
"""The token ids of a prompt; UserError says why a row can't be answered."""


class _Word(Enum):
    """What the main loop is told, besides rows."""

    FINISHED = auto()  # a request
    END = auto()  # of the rows


_Events = queue.SimpleQueue[Row | _Word | BaseException]


class Batch:
    """Answers rows and writes their records.

    Args:
        answerer: does the work.
        encode: runs in a thread of its own.
        records: are written to.
        max_num_seqs: how many rows the answerer has in work at once.
    """

    def __init__(
        self, answerer: Answerer, encode: Encode, records: Records, *, max_num_seqs: int
    ) -> None:
        self._answerer, self._encode, self._records = answerer, encode, records
        self._max_num_seqs = max_num_seqs
        self._events: _Events = queue.SimpleQueue()
        self._read: deque[Row] = deque()
        self._begun: deque[tuple[Row, Future[Completion] | None]] = deque()
        self._running = 0
        self._ended = False

    def run(self, rows: Iterator[Row], tally: Tally, told: Callable[[], None]) -> None:
        """Answer all rows; what is written is added to `tally`, and `told` is called.

        Raises:
            WorkerError: the answerer is dead. The records of rows that ended because of it are not
                written, so that the next run tries these again.
            SpecpipeError: rows can't be read on, or records can't be written.
        """
        reader = _Reader(rows, self._encode, self._events, self._max_num_seqs * _READ)
        try:
            while not (self._ended and not self._read and not self._begun):
                self._wait()
                self._hand_in(reader)
                while self._begun and self._is_done(self._begun[0]):
                    self._write(*self._begun.popleft(), tally)
                    told()
        finally:
            reader.stop()
            for _, future in self._begun:
                if future is not None:
                    future.cancel()
            self._records.sync()

    def _wait(self) -> None:
        """Until a row was read or a request has finished; meanwhile what was written is synced."""
        try:
            event = self._events.get(timeout=SYNC_EVERY_S if self._records.unsynced else None)
        except queue.Empty:
            self._records.sync()
            return
        match event:
            case Row():
                self._read.append(event)
            case _Word.FINISHED:
                self._running -= 1
            case _Word.END:
                self._ended = True
            case _:
                raise event

    def _hand_in(self, reader: "_Reader") -> None:
        """Begin as many rows as may be in work."""
        while (
            self._read
            and self._running < self._max_num_seqs * _SUBMITTED
            and len(self._begun) < self._max_num_seqs * _HELD
        ):
            row = self._read.popleft()
            reader.go_on()
            future = None
            if isinstance(row.asked, Asked):
                future = self._answerer.submit(row.asked.prompt, row.asked.params)
                self._running += 1
                future.add_done_callback(lambda _: self._events.put(_Word.FINISHED))
            self._begun.append((row, future))

    @staticmethod
    def _is_done(begun: "tuple[Row, Future[Completion] | None]") -> bool:
        return begun[1] is None or begun[1].done()

    def _write(self, row: Row, future: "Future[Completion] | None", tally: Tally) -> None:
        completion = None if future is None else future.result()
        if completion is None:
            record = error_record(row, str(row.asked))
        elif completion.finish_reason == "error" and not self._answerer.alive:
            raise WorkerError(completion.cause)
        else:
            record = answer_record(row, completion)
        self._records.write(record)
        tally.count(record, completion)


class _Reader:
    """Reads rows and encodes their prompts in a thread, so that neither holds anything up.

    Args:
        rows: their prompts become token ids.
        encode: see Encode.
        events: get the rows, their end, or what was raised.
        ahead: most rows that are read and not yet begun.
    """

    def __init__(self, rows: Iterator[Row], encode: Encode, events: _Events, ahead: int) -> None:
        self._rows, self._encode, self._events = rows, encode, events
        self._room = threading.Semaphore(ahead)
        self._stopped = False
        # A daemon: nobody can end the wait for the next line of a pipe.
        threading.Thread(target=self._work, name="specpipe-batch", daemon=True).start()

    def go_on(self) -> None:
        """Let it read one more row."""
        self._room.release()

    def stop(self) -> None:
        """Let it end, unless it waits for a line."""
        self._stopped = True
        self._room.release()

    def _work(self) -> None:
        try:
            while self._room.acquire() and not self._stopped:
                row = next(self._rows, None)
                if row is None:
                    self._events.put(_Word.END)
                    return
                self._events.put(self._encoded(row))
        except BaseException as error:  # it is the main loop's to tell
            self._events.put(error)

    def _encoded(self, row: Row) -> Row:
        if not isinstance(row.asked, Asked):
            return row
        try:
            return replace(row, asked=Asked(self._encode(row.asked), row.asked.params))
        except UserError as error:
            return row.refused(error)
