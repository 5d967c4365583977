"""Text files to train on: found, held to be text, and read in pieces that fit any memory."""

import codecs
import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from specpipe.errors import UserError

_BLOCK = 1 << 20  # bytes, and characters


@dataclass(frozen=True, slots=True)
class Texts:
    """Files, and what is in them.

    Attributes:
        paths: in a fixed order, none twice.
        size: bytes of all.
        sha256: of the contents, file by file.
    """

    paths: tuple[Path, ...]
    size: int
    sha256: str

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """The text, about a megabyte at a time, and whether a file ends with it.

        Raises:
            UserError: if a file can't be read any more.
        """
        for path in self.paths:
            try:
                with path.open(encoding="utf-8", newline="") as file:
                    piece = _piece(file)
                    while piece:
                        following = _piece(file)
                        yield piece, not following
                        piece = following
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"cannot read {path} any more ({error}): put it back") from None


def find_texts(patterns: Sequence[str], name: str) -> Texts:
    """Look for files, and read them once.

    Args:
        patterns: paths, or patterns with `*`, and `**` for folders in folders.
        name: of the setting.

    Raises:
        UserError: if a pattern matches no file, a file is not UTF-8, or all are empty.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        files = [
            path for path in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(path)
        ]
        if not files:
            raise UserError(
                f"{name} names {pattern!r:.100}, which is no file here ({Path.cwd()}): mend it, or "
                "call from the folder that it is seen from"
            )
        for path in files:
            found.setdefault(os.path.realpath(path), Path(path))
    read = [(path, *_scan(path)) for path in found.values()]
    kept = [(path, size, sha) for path, size, sha in read if size]
    if not kept:
        raise UserError(f"{name} names only empty files ({patterns[0]!r:.100}): give some text")
    whole = hashlib.sha256("".join(sha for _, _, sha in kept).encode()).hexdigest()
    return Texts(tuple(path for path, _, _ in kept), sum(size for _, size, _ in kept), whole)


def _piece(file: TextIO) -> str:
    """Up to the end of a line, if it is a block away at most: what is cut is other tokens."""
    block = file.read(_BLOCK)
    return block + file.readline(_BLOCK) if block else ""


def _scan(path: Path) -> tuple[int, str]:
    """The size and SHA-256 of a file that is UTF-8 text."""
    digest, decoder, size = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                begun = len(decoder.getstate()[0])  # of a character
                digest.update(block)
                decoder.decode(block)
                size += len(block)
        begun = len(decoder.getstate()[0])
        decoder.decode(b"", final=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text at byte {size - begun + error.start:,}: convert it, or "
            "leave it out"
        ) from None
    return size, digest.hexdigest()
