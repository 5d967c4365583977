"""The records of a batch: one for each row, in the rows' order, and safely on disk.

A file of records is only appended to. After a crash its last line may be torn; whoever goes on
takes that off, and sees by each record's key that it belongs to its row.
"""

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Self

from specpipe.batch.rows import Row
from specpipe.completion import Completion
from specpipe.errors import SpecpipeError, UserError

SYNC_EVERY_S = 0.2
"""Most seconds that a written record may be lost with the machine's power."""

Record = dict[str, Any]

_BEGINNING = b'{"index": '  # of every record
_ANSWER = ("text", "token_ids", "finish_reason", "seed")
_METRICS = (
    *("prompt_tokens", "completion_tokens", "seconds", "tokens_per_second"),
    *("time_to_first_token_s", "acceptance_rate", "mean_acceptance_length"),
)


def answer_record(row: Row, completion: Completion) -> Record:
    """What is written of a row that was answered, or whose answer ended with an error."""
    figures = completion.figures()
    logprobs = {} if completion.logprobs is None else {"logprobs": figures["logprobs"]}
    metrics = {name: figures[name] for name in _METRICS}
    answer = {name: figures[name] for name in _ANSWER} | logprobs
    return _name(row) | answer | _end(row, completion.cause or None, metrics)


def error_record(row: Row, error: str) -> Record:
    """What is written of a row that could not be answered: the same keys."""
    answer: Record = {"text": "", "token_ids": [], "finish_reason": "error", "seed": None}
    return _name(row) | answer | _end(row, error, None)


def _name(row: Row) -> Record:
    return {"index": row.index} | ({} if row.id is None else {"id": row.id})


def _end(row: Row, error: str | None, metrics: Record | None) -> Record:
    return {"error": error, "metrics": metrics, "key": row.key}


@dataclass(slots=True)
class Tally:
    """What came of the rows.

    Attributes:
        kept: rows that had a record when the run began.
        rows, errors: that have one now, and how many of these tell of an error.
        tokens, sent, accepted: written and guessed by this run.
    """

    kept: int = 0
    rows: int = 0
    errors: int = 0
    tokens: int = 0
    sent: int = 0
    accepted: int = 0

    def count(self, record: Record, completion: Completion | None) -> None:
        """Add a record that this run wrote."""
        self.rows += 1
        self.errors += record["error"] is not None
        if completion is not None:
            self.tokens += completion.metrics.completion_tokens
            self.sent += completion.metrics.sent
            self.accepted += completion.metrics.accepted


class Records:
    """Where records are written to.

    Args:
        file: to write to.
        name: what the user calls it.
        stays: whether it is a file that a later run can take up.

    Attributes:
        stays: the same.
        unsynced: whether something was written that may not be on the disk yet.
    """

    def __init__(self, file: FileIO, name: str, *, stays: bool) -> None:
        self._file, self._name, self.stays = file, name, stays
        self._on_disk = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        self.unsynced = False
        self._synced = time.monotonic()

    @classmethod
    def open(cls, path: str, *, resume: bool) -> Self:
        """A file for records, or standard output for "-".

        Args:
            path: made if it is not there.
            resume: whether it may hold records.

        Raises:
            UserError: if it can't be written, another run writes it, or something is in it and we
                don't go on.
        """
        to_pipe = path == "-" or (os.path.exists(path) and not os.path.isfile(path))
        if to_pipe and resume:
            raise UserError(f"--resume needs a file to go on in, and OUTPUT is {path}: name one")
        try:
            file = FileIO(1 if path == "-" else path, "w" if to_pipe else "a", closefd=path != "-")
        except OSError as error:
            raise UserError(
                f"cannot write records to {path}: {error.strerror or error}; name another file"
            ) from None
        records = cls(file, path, stays=not to_pipe)
        try:
            if not to_pipe:
                records._claim(resume)
        except BaseException:
            file.close()
            raise
        return records

    def take_up(self, rows: Iterator[Row]) -> Tally:
        """Skip the rows that have a record, and take off what was torn while it was written.

        Raises:
            UserError: if a record is not that of its row, asked of this target in this way.
        """
        tally, end = Tally(), 0
        with Path(self._name).open("rb") as file:
            while (line := file.readline()).endswith(b"\n"):
                tally.errors += self._match(line, tally.rows, next(rows, None))
                tally.rows += 1
                end += len(line)
        if line and not _BEGINNING.startswith(line[: len(_BEGINNING)]):
            raise UserError(f"{self._name} ends with something else than records: name another")
        if line:
            os.ftruncate(self._file.fileno(), end)
        tally.kept = tally.rows
        return tally

    def write(self, record: Record) -> None:
        """Append a record, which is on the disk a moment later.

        Raises:
            SpecpipeError: if it can't be written.
            BrokenPipeError: if nobody reads any more.
        """
        left = memoryview(json.dumps(record).encode() + b"\n")
        with self._failing():
            while left:
                left = left[self._file.write(left) or 0 :]
        self.unsynced = self._on_disk
        if time.monotonic() - self._synced >= SYNC_EVERY_S:
            self.sync()

    def sync(self) -> None:
        """Wait until all that was written is on the disk; raises as `write`."""
        if self.unsynced:
            with self._failing():
                os.fsync(self._file.fileno())
            self.unsynced = False
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise SpecpipeError(
                f"cannot write to {self._name}: {error.strerror or error}"
            ) from None

    def _claim(self, resume: bool) -> None:
        """Be the only one who writes, into an empty file or one to go on in."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another run is writing to {self._name}: wait for it, or name another file"
            ) from None
        except OSError:
            pass  # a file system that knows no locks
        if os.fstat(self._file.fileno()).st_size and not resume:
            raise UserError(
                f"{self._name} is not empty: go on in it with --resume, remove it, or name another"
            )
        with suppress(OSError):  # some file systems have no use for it
            folder = os.open(os.path.dirname(os.path.abspath(self._name)), os.O_RDONLY)
            try:
                os.fsync(folder)  # the file's name is to be there, too
            finally:
                os.close(folder)

    def _match(self, line: bytes, index: int, row: Row | None) -> bool:
        """Hold a record against its row; returns whether it tells of an error."""
        if row is None:
            raise UserError(
                f"{self._name} has more records than there are rows, {index}: name another file"
            )
        try:
            record = json.loads(line)
            found = record["index"], record.get("id"), record["key"], record["error"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UserError(
                f"line {index + 1} of {self._name} is no record: name another file"
            ) from None
        if found[:3] != (row.index, row.id, row.key):
            raise UserError(
                f"record {index} of {self._name} is not of this row, target and options: give those"
                " of the first run, or name another file"
            )
        return found[3] is not None
