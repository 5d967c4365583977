"""Prompts from a file of JSON lines, each with `prompt`, or with `turns` of which the first counts.

A `category` says what kind of task it is. Other keys are left alone, so that question sets such as
Spec-Bench's can be used as they are.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from specpipe.errors import UserError

_WANTED = 'give JSON lines like {"prompt": "Why is the sky blue?"}'
_OWN = "prompts.jsonl"


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and the kind of task that it is; "other" where its file doesn't say."""

    text: str
    category: str = "other"


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, in order.

    Raises:
        UserError: as read_questions.
    """
    return [question.text for question in read_questions(path)]


def read_questions(path: Path) -> list[Question]:
    """The prompts of a file with their kinds, in order.

    Raises:
        UserError: if it can't be read, has none, or a line is not as it should be.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the prompts in {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: {_WANTED}") from None
    return _questions(lines, str(path))


def own_questions() -> list[Question]:
    """The 24 prompts that come with specpipe: four of each of six kinds."""
    file = resources.files("specpipe.bench") / _OWN
    return _questions(file.read_text(encoding="utf-8").splitlines(), _OWN)


def _questions(lines: Sequence[str], source: str) -> list[Question]:
    questions = [
        _question(line, f"line {number} of {source}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not questions:
        raise UserError(f"{source} holds no prompts: {_WANTED}")
    return questions


def _question(line: str, where: str) -> Question:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{where} is not JSON: {_WANTED}") from None
    found = row.get("prompt") if isinstance(row, dict) else None
    if found is None and isinstance(row, dict) and isinstance(row.get("turns"), list):
        found = next(iter(row["turns"]), None)
    if not isinstance(found, str):
        raise UserError(f"{where} has no text under `prompt` or `turns`: {_WANTED}")
    if not found.strip():
        raise UserError(f"{where} has an empty prompt: leave the line out")
    return Question(found, str(row.get("category", "other")))
