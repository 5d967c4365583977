"""Looking up where a text's end stood before: against a search that reads everything."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specpipe.drafting.past_outputs import PastOutputs
from specpipe.drafting.suffix_index import LONGEST, ORDERS, Match, SuffixIndex

TEXTS = st.lists(st.integers(0, 3), max_size=60)


def index_of(tokens: list[int], capacity: int = 1000) -> SuffixIndex:
    index = SuffixIndex(capacity)
    index.extend(tokens)
    return index


def common(tokens: list[int], at: int, text: list[int]) -> int:
    """How many tokens before and at a position are those that a text ends with."""
    length = 0
    while length < min(at + 1, len(text), LONGEST) and tokens[at - length] == text[-1 - length]:
        length += 1
    return length


def searched(tokens: list[int], text: list[int], most: int) -> list[Match]:
    """What `matches` shall say, by reading all."""
    for order in reversed(ORDERS):
        ends = [at for at in range(len(tokens) - 1) if common(tokens, at, text) >= order]
        if ends:
            last = len(tokens) - 1
            return [
                Match(tokens[at + 1], common(tokens, at, text), last - at)
                for at in reversed(ends[-most:])
            ]
    return []


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(TEXTS, st.integers(1, 4))
def test_finds_what_a_search_finds(tokens: list[int], most: int) -> None:
    """An off-by-one in positions predicts the token beside the right one, and nobody notices."""
    assert index_of(tokens).matches(most) == searched(tokens, tokens, most)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(TEXTS, TEXTS)
def test_finds_the_end_of_another_text(tokens: list[int], text: list[int]) -> None:
    """The last position of what is searched has nothing after it; another text's end may be it."""
    found = index_of(tokens, 64).matches(2, index_of(text))
    assert found == searched(tokens, text, 2)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(TEXTS, st.lists(st.tuples(st.integers(0, 60), TEXTS), max_size=4))
def test_forgetting_leaves_no_trace(
    tokens: list[int], changes: list[tuple[int, list[int]]]
) -> None:
    """Guesses are entered and taken back all the time: what is left of them would be found."""
    index = index_of(tokens)
    for length, more in changes:
        tokens = tokens[:length] + more
        index.truncate(length)
        index.extend(more)
    fresh = index_of(tokens)
    assert index.matches(4) == fresh.matches(4)
    assert index._tables == fresh._tables


def test_a_long_text_costs_no_more_than_a_short_one() -> None:
    """A scan, or a chain of a thousand occurrences of a common word, grows with the text."""
    counts = []
    for length in (1_000, 50_000):
        index = index_of([0, 1, 2, 0, 3] * (length // 5), length + 10)
        looked_at = 0

        class Counting(list):  # type: ignore[type-arg]
            def __getitem__(self, at):  # type: ignore[no-untyped-def]
                nonlocal looked_at
                looked_at += 1
                return super().__getitem__(at)

        tables = [table._replace(earlier=Counting(table.earlier)) for table in index._tables]
        index._tables = tables  # type: ignore[arg-type]
        index.matches(4)
        counts.append(looked_at)
    assert counts[0] == counts[1] <= 22


def test_what_does_not_fit_is_refused() -> None:
    """Past its capacity an index would be slow without a word."""
    index = index_of([1, 2, 3], 4)
    with pytest.raises(ValueError, match="exceed 4"):
        index.extend([4, 5])
    assert len(index) == 3


def test_past_outputs_keep_the_latest_in_bounded_memory() -> None:
    """A store that only grows ends a long batch job by its memory."""
    past = PastOutputs(40)
    for i in range(30):
        past.remember([100 + i, 7, 8, 200 + i])
        assert len(past) <= 40
    text = index_of([129, 7, 8])
    assert [match.token for match in past.matches(1, text)] == [229]
    assert past.matches(1, index_of([100]))[:1] == []
    past.remember(list(range(100)))
    assert len(past) <= 40
    assert [match.token for match in past.matches(1, index_of([97, 98]))] == [99]


def test_lookups_take_microseconds() -> None:
    """Not a benchmark: a bound a hundred times what it takes, for what is quadratic."""
    index = index_of(list(range(500)) * 40, 30_000)
    begun = time.perf_counter()
    for token in range(500):
        index.extend([token])
        index.matches(4)
    assert time.perf_counter() - begun < 1.0
