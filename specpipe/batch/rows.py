"""The rows of a batch: lines of JSON, each understood by itself.

A line that can't be understood is a row all the same, with the reason in place of what it asks for:
it gets a record like any other, and the rest goes on.
"""

import hashlib
import json
import os
import reprlib
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from io import BufferedReader, FileIO
from typing import Any, BinaryIO, get_type_hints

from specpipe.config import Config
from specpipe.errors import SpecpipeError, UserError
from specpipe.lossless import key_of
from specpipe.pair import ModelPair, Prompt
from specpipe.sampling import SamplingParams
from specpipe.toml_file import checked, unknown

MAX_LINE_BYTES = 8 * 2**20
"""Longest line that is read: a prompt of a million tokens fits."""

_WANTED = 'give JSON lines like {"prompt": "Why is the sky blue?"}'
_MESSAGES = '[{"role": "user", "content": "Why is the sky blue?"}]'
_OPTIONS = [field.name for field in fields(SamplingParams) if field.name != "n"]
_NAMES = ["id", "prompt", "messages", *_OPTIONS]
_TYPES = get_type_hints(SamplingParams)
_LONGEST_NAME = 60  # of a key that is told


@dataclass(frozen=True, slots=True)
class Asked:
    """What a row asks for; the parameters have a seed."""

    prompt: Prompt
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the input.

    Attributes:
        index: its place among the rows, from 0; blank lines are none.
        line: its number in the file, from 1.
        key: a hash of the line and of all else that its answer depends on.
        id: its own name for itself, if it has one.
        asked: what for, or one line on why that can't be told.
    """

    index: int
    line: int
    key: str
    id: str | int | None
    asked: Asked | str

    def refused(self, error: UserError) -> "Row":
        """The same row, which can't be answered."""
        return replace(self, asked=f"line {self.line}: {error}")


@contextmanager
def open_rows(path: str) -> Iterator[BinaryIO]:
    """A file of rows, or standard input for "-".

    Raises:
        UserError: if it can't be read.
    """
    try:
        # Not sys.stdin: a thread that waits for its next line would be in the way of the end.
        raw = FileIO(0 if path == "-" else path, closefd=path != "-")
    except OSError as error:
        raise UserError(f"cannot read the rows in {path}: {error.strerror or error}") from None
    file = BufferedReader(raw)
    try:
        yield file
    finally:
        if _on_disk(file):  # to close a pipe would be to wait for that thread, and for the line
            file.close()


def count_rows(file: BinaryIO) -> int | None:
    """How many rows are still to come; None of a pipe, which can be read only once."""
    if not _on_disk(file):
        return None
    start = file.tell()
    count = sum(1 for _ in _lines(file))
    file.seek(start)
    return count


def read_rows(file: BinaryIO, params: SamplingParams, run: str) -> Iterator[Row]:
    """The rows of a file, one after the other: memory holds one of them.

    Args:
        file: lines of JSON objects; each has `prompt` or `messages`, and may have an `id` and any
            of SamplingParams but `n`.
        params: what holds where a row says nothing else; with a seed, from which and the row's
            index comes that of a row without one.
        run: see key_of_run.

    Raises:
        SpecpipeError: if the file can't be read on.
    """
    for index, (number, line) in enumerate(_lines(file)):
        key = hashlib.sha256(run.encode() + line).hexdigest()[:16]
        row = Row(index, number, key, None, "")
        try:
            said = _parse(line)
            row = replace(row, id=_id(said))
            _check_names(said)
            row = replace(row, asked=Asked(_prompt(said), _params(said, params, index)))
        except UserError as error:
            row = row.refused(error)
        yield row


def key_of_run(config: Config, pair: ModelPair, *, raw: bool) -> str:
    """A hash of all that answers depend on, besides their rows.

    Weights go by the names and sizes of their files: to read them would take longer than many a
    run. Neither the draft nor devices change what is written.
    """
    return key_of(
        {
            "target": {path.name: path.stat().st_size for path in pair.target.paths},
            "backend": config.target.backend,
            "dtype": config.target.dtype,
            "context_length": pair.context_length,
            "acceptance": config.pipeline.acceptance,
            "sampling": asdict(config.sampling),
            "raw": raw,
        }
    )


def seed_of(seed: int, index: int) -> int:
    """The seed of a row that has none of its own.

    It is drawn from the run's: with neighbouring numbers two runs would share most of their seeds.
    """
    digest = hashlib.sha256(f"{seed} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _on_disk(file: BinaryIO) -> bool:
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers; of one that is too long, its beginning."""
    number = 0
    try:
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            rest = line
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE_BYTES)
            if stripped := line.strip():
                yield number, stripped
    except OSError as error:
        raise SpecpipeError(
            f"cannot read the rows behind line {number}: {error.strerror or error}"
        ) from None


def _parse(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise UserError(f"it has more than {MAX_LINE_BYTES >> 20} MiB: shorten the prompt")
    try:
        said: Any = json.loads(line.decode("utf-8-sig"))  # Windows begins files with a mark
    except UnicodeDecodeError:
        raise UserError(f"it is not UTF-8 text: {_WANTED}") from None
    except (ValueError, RecursionError):
        raise UserError(f"it is not JSON: {_WANTED}") from None
    if not isinstance(said, dict):
        raise UserError(f"it is {reprlib.repr(said)}: {_WANTED}")
    return said


def _id(said: Mapping[str, Any]) -> str | int | None:
    name = said.get("id")
    if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
        raise UserError(f"id is {reprlib.repr(name)}: it must be a text or a whole number")
    return name


def _prompt(said: Mapping[str, Any]) -> Prompt:
    prompt, messages = said.get("prompt"), said.get("messages")
    if (prompt is None) == (messages is None):
        raise UserError(f"it must have either `prompt` or `messages`: {_WANTED}")
    if messages is not None:
        if not (isinstance(messages, list) and messages and all(map(_is_message, messages))):
            raise UserError(f"messages is {reprlib.repr(messages)}: give a list like {_MESSAGES}")
        return messages
    if not isinstance(prompt, str):
        raise UserError(f"prompt is {reprlib.repr(prompt)}: it must be a text")
    if not prompt.strip():
        raise UserError("the prompt is empty: leave the row out")
    return prompt


def _is_message(message: Any) -> bool:
    """Whether it is what a chat template can be given: texts, of which two must be there."""
    return (
        isinstance(message, dict)
        and {"role", "content"} <= message.keys()
        and all(isinstance(text, str) for text in message.values())
    )


def _check_names(said: Mapping[str, Any]) -> None:
    if "n" in said:
        raise UserError("n is not for a row, which gets one answer: repeat the row instead")
    for name in said:
        if name not in _NAMES:
            raise unknown(name[:_LONGEST_NAME], None, "", {}, plain=_NAMES)


def _params(said: Mapping[str, Any], params: SamplingParams, index: int) -> SamplingParams:
    """The row's own parameters over those of the run; null is as good as left out."""
    assert params.seed is not None
    given = {name: said[name] for name in _OPTIONS if said.get(name) is not None}
    values = {name: checked(value, _TYPES[name], name, "") for name, value in given.items()}
    return replace(params, **({"seed": seed_of(params.seed, index)} | values))
