"""Where a text ends: as token-by-token decoding would have ended it."""

from itertools import product

import pytest

from specpipe.stopping import FinishReason, StopRule


def one_by_one(
    tokens: tuple[int, ...], left: int, stops: set[int]
) -> tuple[list[int], FinishReason | None]:
    """The reference: look after each token."""
    written: list[int] = []
    for token in tokens:
        written.append(token)
        if token in stops:
            return written, "stop"
        if len(written) == left:
            return written, "length"
    return written, None


@pytest.mark.parametrize("stops", [set(), {0}, {0, 2}])
def test_cut_is_that_of_decoding_token_by_token(stops: set[int]) -> None:
    """A block accepted past an end token, or past max_tokens, must not show."""
    for length in range(1, 5):
        for tokens in product(range(3), repeat=length):
            for left in range(1, 6):
                cut, reason = StopRule(stops).cut(tokens, left)
                assert (list(cut), reason) == one_by_one(tokens, left, stops)


def test_end_token_at_the_very_end_counts_as_stop() -> None:
    """Both at once: the text is complete, and callers ask for more of what was cut."""
    assert StopRule({0}).cut([5, 0], 2) == ([5, 0], "stop")


def test_end_token_is_ignored_if_asked() -> None:
    """Benchmarks ask for a fixed number of tokens."""
    assert StopRule(()).cut([0, 0, 0], 5) == ([0, 0, 0], None)
