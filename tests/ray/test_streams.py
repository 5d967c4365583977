"""What was not read yet: all of it, in order, and no more than that."""

import threading

from specpipe.actors.stream import Unread
from specpipe.messages import Finish, Tokens
from specpipe.metrics import RequestMetrics
from specpipe.sampling import TokenLogprobs

FINISH = Finish(1, "stop", "", RequestMetrics())


def piece(place: int) -> Tokens:
    logprobs = (TokenLogprobs(-float(place), (), ()),)
    return Tokens(1, place, (place,), ("bonus",), contradicts=place == 3, logprobs=logprobs)


def test_a_reader_that_comes_late_finds_one_piece_and_the_end() -> None:
    """A queue of thousands of pieces, one a token, takes many times the room of its text."""
    woken: list[None] = []
    unread = Unread(lambda: woken.append(None))
    for place in range(1000):
        unread.put(piece(place))
    unread.put(FINISH)
    whole, end = unread.take()
    assert isinstance(whole, Tokens)
    assert whole.start == 0
    assert whole.tokens == tuple(range(1000))
    assert whole.origins == ("bonus",) * 1000
    assert [each.logprob for each in whole.logprobs] == [-float(place) for place in range(1000)]
    assert whole.contradicts
    assert end is FINISH
    assert unread.take() == []
    assert len(woken) == 1, "a reader is woken once for all that it has not read"


def test_nothing_is_lost_or_doubled_between_two_threads() -> None:
    """A piece that comes while the reader takes the last one."""
    ready = threading.Semaphore(0)
    unread, got = Unread(ready.release), list[int]()

    def write() -> None:
        for place in range(5000):
            unread.put(piece(place))
        unread.put(FINISH)

    writer = threading.Thread(target=write)
    writer.start()
    ended = False
    while not ended:
        assert ready.acquire(timeout=10)
        for update in unread.take():
            if isinstance(update, Tokens):
                got += update.tokens
            else:
                ended = True
    writer.join()
    assert got == list(range(5000))
