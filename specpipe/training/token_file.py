"""A text as token ids on disk, mapped rather than held; it is there whole or not at all."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specpipe.errors import UserError
from specpipe.training.optimising import Told
from specpipe.training.shards import written_atomically
from specpipe.training.text_tokenizer import TextTokenizer
from specpipe.training.texts import Texts

_AT_ONCE = 8  # pieces of a megabyte, which the library's threads share

Tokens = NDArray[np.unsignedinteger]


def tokens_of(texts: Texts, tokenizer: TextTokenizer, folder: Path, told: Told) -> Tokens:
    """The ids of all texts, one after the other, each with its end.

    Args:
        texts: what to read.
        tokenizer: by which.
        folder: where the ids are kept, and are found again if they are of the same text.
        told: of the progress.

    Returns:
        uint16[n] or uint32[n], mapped for reading.

    Raises:
        UserError: if a text can't be read any more, or the file not be written.
    """
    # Another text, or other ids of it, have another name.
    path = folder / f"{texts.sha256[:16]}-{tokenizer.sha256[:16]}.{np.dtype(tokenizer.dtype).name}"
    if not path.exists():
        pieces, done = texts.pieces(), 0
        with written_atomically(path) as file:
            file.write(_ids(tokenizer, tokenizer.begin).tobytes())
            while batch := list(islice(pieces, _AT_ONCE)):
                for ids in _ended(batch, tokenizer):
                    file.write(ids.tobytes())
                done += sum(len(piece.encode()) for piece, _ in batch)
                told(min(1.0, done / texts.size), f"{done / 1e6:.1f} MB read")
    try:
        return np.memmap(path, tokenizer.dtype, "r")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}): remove it, then start again") from None


def _ended(batch: list[tuple[str, bool]], tokenizer: TextTokenizer) -> Iterator[Tokens]:
    """Ids of pieces, with the tokens that stand between texts."""
    found = tokenizer.encode([piece for piece, _ in batch])
    for ids, (_, last) in zip(found, batch, strict=True):
        yield ids
        if last:
            says_end = len(ids) and ids[-1] == tokenizer.end
            yield _ids(tokenizer, None if says_end else tokenizer.end, tokenizer.begin)


def _ids(tokenizer: TextTokenizer, *ids: int | None) -> Tokens:
    """Those that there are."""
    return np.array([token for token in ids if token is not None], tokenizer.dtype)


class Windows:
    """Sequences of one length from a text; the n-th batch is the same each time.

    All of the text is read once before any of it again, in another order and from another offset.

    Args:
        tokens: the text.
        length: tokens that are fed; one more is taken, since each is followed by the one to guess.
        seed: of their order.
    """

    def __init__(self, tokens: Tokens, length: int, seed: int = 0) -> None:
        self._tokens, self._length, self._seed = tokens, length, seed
        self.count = (len(tokens) - 1) // length
        # An offset costs one of them.
        self._epoch = max(1, self.count - 1)
        self._order: tuple[int, int, NDArray[np.int64]] = (-1, 0, np.empty(0, np.int64))

    def batch(self, number: int, size: int) -> NDArray[np.int64]:
        """int64[size, length + 1]."""
        places = [self._place(index) for index in range(number * size, (number + 1) * size)]
        return self._at(places)

    def some(self, most: int) -> Iterator[NDArray[np.int64]]:
        """At most so many, int64[1, length + 1] each, from everywhere."""
        for index in np.linspace(0, self.count - 1, min(most, self.count)).round().astype(int):
            yield self._at([int(index) * self._length])

    def _place(self, index: int) -> int:
        epoch, index = divmod(index, self._epoch)
        if self._order[0] != epoch:
            random = np.random.default_rng((self._seed, epoch))
            offset = int(random.integers(0, self._length)) if self.count > 1 else 0
            self._order = (epoch, offset, random.permutation(self._epoch))
        _, offset, order = self._order
        return offset + int(order[index]) * self._length

    def _at(self, places: list[int]) -> NDArray[np.int64]:
        rows = [self._tokens[place : place + self._length + 1] for place in places]
        return np.stack(rows).astype(np.int64)
