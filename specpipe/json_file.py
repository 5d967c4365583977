"""JSON files that came with a model and are not trusted: bounded, and of the expected kind."""

import json
from pathlib import Path
from typing import Any

from specpipe.errors import UserError

MAX_BYTES = 1 << 26
"""Largest file that is read; tokenizers of large vocabularies have up to 35 MB."""


def read_text(path: Path) -> str:
    """Read a text file of at most MAX_BYTES.

    Raises:
        UserError: if it can't be read, is larger, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; fetch the model again"
        ) from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES >> 20} MiB: fetch the model again")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8: fetch the model again") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        UserError: as `read_text`, or if it holds something else.
    """
    return parse_object(read_text(path), path)


def read_object_if_there(path: Path) -> dict[str, Any]:
    """As `read_object`; empty if there is no such file."""
    return read_object(path) if path.exists() else {}


def parse_object(text: str, path: Path) -> dict[str, Any]:
    """Parse the text of a file that holds one JSON object.

    Raises:
        UserError: if it is something else.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not JSON ({reason:.80}): fetch the model again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object: fetch the model again")
    return value
