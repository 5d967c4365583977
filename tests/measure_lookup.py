"""What a look-up costs, and how much memory: part of `make measure-drafters`."""

import statistics
import time

from specpipe.calibration import Experience
from specpipe.drafting.ngram import NGrams
from tests.prompts import OWN

LENGTHS = (1_000, 32_000, 1_000_000)


def text(length: int) -> list[int]:
    """Bytes of our prompts, over and over, with a word of their own between."""
    tokens: list[int] = []
    while len(tokens) < length:
        tokens += [*OWN[len(tokens) % len(OWN)].encode(), 256 + len(tokens) % 40_000]
    return tokens[:length]


def main() -> None:
    for length in LENGTHS:
        tokens = text(length + 1000)
        ngrams = NGrams(length + 1000, Experience())
        ngrams.follow(tokens[:length])
        times = []
        for token in tokens[length:]:
            begun = time.perf_counter()
            ngrams.enter(token)
            ngrams.find()
            times.append(time.perf_counter() - begun)
        index = ngrams._index
        arrays = [index._tokens, index._prefix]
        arrays += [a for table in index._tables for a in (table.heads, table.earlier)]
        size = sum(array.itemsize * len(array) for array in arrays) / len(index)
        print(
            f"{length:>9} tokens: {statistics.median(times) * 1e6:.1f} µs to enter a token and to "
            f"look up the next (median), {size:.0f} bytes a token",
            flush=True,
        )


if __name__ == "__main__":
    main()
