"""Conversations with their target's law, on disk: one file for each few hundred of them.

A shard appears whole or not at all, so work that was interrupted goes on after the last one.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from specpipe.errors import UserError

_SECONDS = "seconds"

LAW_TOKENS = 32
"""How many of the likeliest tokens are kept with each that the target wrote."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said, and which tokens the target wrote.

    Attributes:
        tokens: int32[n].
        written: bool[n], whether the target wrote the token.
        law_ids: int32[written, LAW_TOKENS], its likeliest tokens at each of these.
        law_logprobs: float16[written, LAW_TOKENS], at temperature 1.
        reply: index of the first token of the last reply.
    """

    tokens: NDArray[np.int32]
    written: NDArray[np.bool_]
    law_ids: NDArray[np.int32]
    law_logprobs: NDArray[np.float16]
    reply: int


def write_shard(path: Path, conversations: Sequence[Conversation], seconds: float) -> None:
    """Write a shard, and how long it took to make.

    Raises:
        UserError: if it can't be written; nothing is there then.
    """
    tensors = {
        "tokens": np.concatenate([each.tokens for each in conversations]),
        "written": np.concatenate([each.written for each in conversations]),
        "law_ids": np.concatenate([each.law_ids for each in conversations]),
        "law_logprobs": np.concatenate([each.law_logprobs for each in conversations]),
        "lengths": np.array([len(each.tokens) for each in conversations], np.int32),
        "replies": np.array([each.reply for each in conversations], np.int32),
    }
    write_atomically(path, save(tensors, {_SECONDS: f"{seconds:.3f}"}))


def shard_seconds(path: Path) -> float:
    """How long a shard took to make.

    Raises:
        UserError: if it is none.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return float((file.metadata() or {}).get(_SECONDS, 0))
    except (OSError, SafetensorError, ValueError) as error:
        raise _broken(path, error) from None


def read_shard(path: Path) -> list[Conversation]:
    """Read a shard.

    Raises:
        UserError: if it is none.
    """
    try:
        t = load_file(path)
        ends = np.cumsum(t["lengths"])[:-1]
        written = np.split(t["written"], ends)
        laws = np.cumsum([int(each.sum()) for each in written])[:-1]
        parts = zip(
            np.split(t["tokens"], ends),
            written,
            np.split(t["law_ids"], laws),
            np.split(t["law_logprobs"], laws),
            t["replies"].tolist(),
            strict=True,
        )
        return [Conversation(*part) for part in parts]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{path} is no shard of conversations ({reason:.120}): remove it")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole, with what it held before, or not at all.

    Raises:
        UserError: if it can't be written.
    """
    with written_atomically(path) as file:
        file.write(content)


@contextmanager
def written_atomically(path: Path) -> Iterator[BinaryIO]:
    """As `write_atomically`, for what is too much to be held; yields the file.

    Raises:
        UserError: if it can't be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path} ({error.strerror or error}): make room, or choose another "
            "folder; what was there before is intact"
        ) from None
