"""Measurements on disk as they are made, so that a run that was interrupted can go on.

A file of JSON lines that is only appended to: first the settings of the run, then one measurement a
line. Whoever goes on must have the same settings.
"""

import fcntl
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from specpipe.bench.measurement import Figures, Measurement
from specpipe.errors import UserError

NAME = "measurements.jsonl"
_VERSION = 1


class Journal:
    """The measurements of a run, old and new.

    Args:
        folder: where the file lies; made if need be.
        settings: plain values that all measurements of a run have in common.

    Attributes:
        path: of the file.
        done: what has been measured.

    Raises:
        UserError: if the file is another run's, another process writes it, or it can't be written
            or read.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path = folder / NAME
        self.done: dict[tuple[str, int, int], Measurement] = {}
        header = {"version": _VERSION, "settings": json.loads(json.dumps(settings))}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"cannot write to {folder}: {error.strerror or error}; name another --output-dir"
            ) from None
        try:
            self._lock()
            self._read(header)
        except BaseException:
            self._file.close()
            raise

    def append(self, measurement: Measurement) -> None:
        """Keep a measurement."""
        self.done[measurement.key] = measurement
        self._write(asdict(measurement))

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another run is writing to {self.path}: wait for it, or name another --output-dir"
            ) from None

    def _read(self, header: dict[str, Any]) -> None:
        """Take what is there; begin the file if nothing is."""
        lines = _whole_lines(self._file)
        if not lines:
            self._write(header)
            return
        try:
            found = json.loads(lines[0])
            if found["version"] == _VERSION:
                _compare(found["settings"], header["settings"], self.path)
            else:
                raise UserError(
                    f"{self.path} has version {found['version']!r}, and this is {_VERSION}: name "
                    "another --output-dir"
                )
            for line in lines[1:]:
                measurement = _measurement(json.loads(line))
                self.done[measurement.key] = measurement
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UserError(
                f"{self.path} is no file of measurements of ours: name another --output-dir"
            ) from None

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _whole_lines(file: TextIO) -> list[str]:
    """The lines of a file; what was cut off in the middle of writing is removed from it."""
    file.seek(0)
    try:
        text = file.read()
    except UnicodeDecodeError:
        return ["not text"]
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.truncate(len(whole.encode()))
    return whole.splitlines()


def _measurement(line: dict[str, Any]) -> Measurement:
    return Measurement(**(line | {"figures": Figures(**line["figures"])}))


def _compare(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """Refuse to mix two runs."""
    differing = difference(found, wanted)
    if differing:
        name, old, new = differing
        raise UserError(
            f"{path} is of a run with another {name}: {_short(old)} there, {_short(new)} here; "
            "repeat its settings, or name another --output-dir"
        )


def difference(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> tuple[str, Any, Any] | None:
    """The name and both values of the first setting that differs, however deep; None if none."""
    for name in {**old, **new}:
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            if found := difference(a, b, f"{prefix}{name}."):
                return found
        elif a != b:
            return f"{prefix}{name}", a, b
    return None


def _short(value: Any) -> str:
    return f"{json.dumps(value):.60}"
