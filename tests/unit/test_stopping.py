"""Where a text ends: as token-by-token decoding would have ended it."""

from itertools import product

import pytest

from specpipe.stopping import FinishReason, StopRule, StopTexts


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


# -- stop texts

PIECES = (b"", b"a", b"b", b"ab", "é".encode()[:1], "é".encode()[1:])
TEXTS = [("a",), ("aa",), ("ab", "ba"), ("aba",), ("é",), ("aé", "bb"), ("abab", "b")]


def first_stop(text: bytes, stops: tuple[str, ...]) -> int | None:
    """The reference: where the stop text that begins first begins."""
    return min((at for s in stops if (at := text.find(s.encode())) >= 0), default=None)


@pytest.mark.parametrize("stops", TEXTS, ids=str)
def test_stop_text_ends_an_answer_at_the_token_that_completes_it(stops: tuple[str, ...]) -> None:
    """Across tokens and across verdicts; and not a token later, which would be counted."""
    for tokens in product(range(len(PIECES)), repeat=5):
        texts = [b"".join(PIECES[t] for t in tokens[:count]) for count in range(6)]
        ends = [i for i in range(1, 6) if first_stop(texts[i], stops) is not None]
        for cut in (1, 2, 5):
            rule, written, reason = StopRule((), stops, PIECES), list[int](), None
            for start in range(0, 5, cut):
                part, reason = rule.cut(tokens[start : start + cut], 100)
                written += part
                if reason:
                    break
            assert (len(written), reason) == ((ends[0], "stop") if ends else (5, None))


@pytest.mark.parametrize("stops", TEXTS, ids=str)
def test_nothing_of_a_stop_text_is_ever_shown_and_all_before_it_is(stops: tuple[str, ...]) -> None:
    """Text that a reader has seen can't be taken back; text that is held back for ever is lost."""
    for tokens in product(range(len(PIECES)), repeat=5):
        looker, shown, text = StopTexts(stops), b"", b""
        for token in tokens:
            text += PIECES[token]
            shown += looker.push(PIECES[token])
            at = first_stop(text, stops)
            if at is not None:
                assert (shown, looker.found) == (text[:at], True)
                break
            assert text.startswith(shown)
            held = text[len(shown) :]
            assert not held or any(s.encode().startswith(held) for s in stops), "held for nothing"
        assert shown + looker.flush() == (text if at is None else text[:at])


def test_token_that_ends_and_a_text_that_ends_come_before_the_limit() -> None:
    """All at once: the answer is complete."""
    assert StopRule((), ("b",), PIECES).cut([1, 2], 2) == ([1, 2], "stop")
    assert StopRule((2,), ("a",), PIECES).cut([2, 1], 5) == ([2], "stop")


def test_ids_beyond_the_vocabulary_add_no_text() -> None:
    """A padded id in the middle of a stop text."""
    assert StopRule((), ("ab",), PIECES).cut([1, 99, 2, 1], 9) == ([1, 99, 2], "stop")
