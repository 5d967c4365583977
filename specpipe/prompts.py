"""Prompts from a file of JSON lines, each with `prompt`, or with `turns` of which the first counts.

Other keys are left alone, so that question sets such as Spec-Bench's can be used as they are.
"""

import json
from pathlib import Path
from typing import Any

from specpipe.errors import UserError

_WANTED = 'give JSON lines like {"prompt": "Why is the sky blue?"}'


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, in order.

    Raises:
        UserError: if it can't be read, has none, or a line is not as it should be.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the prompts in {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: {_WANTED}") from None
    prompts = [
        _prompt(line, f"line {number} of {path}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not prompts:
        raise UserError(f"{path} holds no prompts: {_WANTED}")
    return prompts


def _prompt(line: str, where: str) -> str:
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
    return found
