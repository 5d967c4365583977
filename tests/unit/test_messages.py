"""The wire form: what goes in comes out, and whatever else comes in is refused, not believed."""

import dataclasses
import math
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from specpipe.codec import _TAGS, MAX_INT, MAX_MESSAGE_BYTES, VERSION, decode, encode
from specpipe.errors import ProtocolError
from specpipe.figures import ROWS, Counts, Figures, Histogram, Recent, Times
from specpipe.messages import Finish, Message, Origin, Stats, Tokens
from specpipe.metrics import RequestMetrics, Source, Spans
from specpipe.sampling import GuessLaw, Sampling, TokenLogprobs
from specpipe.stopping import FINISH_REASONS
from specpipe.worker_messages import (
    MAX_TEXT,
    Block,
    Close,
    Commit,
    Exhausted,
    Failed,
    LookedUp,
    Open,
    Shutdown,
    Verdict,
)
from tests.fuzz import fuzz

KINDS: tuple[type[Message], ...] = tuple(
    sorted({kind for union in get_args(Message) for kind in get_args(union) or (union,)}, key=str)
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(0, MAX_INT),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: TEXTS,
    bytes: st.binary(max_size=20),
    bool: st.booleans(),
}


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """All values that a field of this type may have."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in {tuple, list}:
        return st.lists(values_of(arguments[0]), max_size=6).map(origin)
    if NoneType in arguments:
        return st.none() | values_of(arguments[0])
    if annotation in VALUES:
        return VALUES[annotation]
    hints = get_type_hints(annotation)
    fields = {field.name: values_of(hints[field.name]) for field in dataclasses.fields(annotation)}
    return st.builds(annotation, **fields)


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    """Blocks whose parts agree in number."""
    numbers, floats = VALUES[int], VALUES[float]
    count, more = draw(st.integers(0, 5)), draw(st.integers(0, 3))

    def some(values: st.SearchStrategy[Any], size: int) -> tuple[Any, ...]:
        return tuple(draw(st.lists(values, min_size=size, max_size=size)))

    head = some(numbers, 4)
    times = some(floats, count + more), some(floats, count + more)
    laws = some(values_of(GuessLaw), draw(st.sampled_from((0, count))))
    tokens, confidences = some(numbers, count), some(floats, count)
    return Block(*head, tokens, confidences, some(values_of(Source), count), *times, laws)


@st.composite
def laws(draw: st.DrawFn) -> GuessLaw:
    """Different tokens with chances that sum to 1."""
    ids = draw(st.lists(VALUES[int], min_size=1, max_size=5, unique=True))
    weights = [draw(st.integers(1, 9)) for _ in ids]
    return GuessLaw(tuple(ids), tuple(weight / sum(weights) for weight in weights))


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    """Verdicts with log-probabilities of all their tokens, or of none."""
    accepted = draw(st.integers(0, 3))
    count = draw(st.sampled_from((0, accepted + 1)))
    logprobs = [draw(values_of(TokenLogprobs)) for _ in range(count)]
    least, most = (accepted, 4) if draw(st.booleans()) else (0, 0)
    block = draw(st.lists(values_of(LookedUp), min_size=least, max_size=most))
    times = draw(st.tuples(*[VALUES[float]] * 2))
    return Verdict(1, 2, 3, accepted, 4, 0.0, *times, tuple(logprobs), block=tuple(block))


@st.composite
def tokens(draw: st.DrawFn) -> Tokens:
    """Tokens, each with its origin."""
    pairs = draw(st.lists(st.tuples(VALUES[int], values_of(Origin)), max_size=5))
    ids, origins = tuple(token for token, _ in pairs), tuple(origin for _, origin in pairs)
    return Tokens(1, 2, ids, origins, draw(st.booleans()))


PAIRS = st.lists(st.tuples(VALUES[float], VALUES[float]), max_size=4)
VALUES[Spans] = PAIRS.map(lambda pairs: Spans([b for b, _ in pairs], [e for _, e in pairs]))
VALUES[Block], VALUES[GuessLaw], VALUES[Verdict] = blocks(), laws(), verdicts()
VALUES[Tokens] = tokens()


@st.composite
def histograms(draw: st.DrawFn) -> Histogram:
    """As many bounds as counts, less one."""
    bounds = draw(st.lists(VALUES[float], max_size=3))
    return Histogram(tuple(bounds), draw(numbers(len(bounds) + 1)), draw(VALUES[float]))


def numbers(size: int) -> st.SearchStrategy[list[int]]:
    return st.lists(VALUES[int], min_size=size, max_size=size)


VALUES[Histogram] = histograms()
VALUES[Counts] = st.builds(
    Counts,
    generation_tokens=VALUES[int],
    num_accepted_tokens_per_pos=numbers(3),
    finished=numbers(len(FINISH_REASONS)),
)
VALUES[Times] = st.builds(
    Times,
    draft_step=histograms(),
    verification=st.lists(histograms(), min_size=len(ROWS), max_size=len(ROWS)),
)
MESSAGES = st.one_of(*(values_of(kind) for kind in KINDS))


def refused(data: bytes) -> str:
    """Why this is no message."""
    with pytest.raises(ProtocolError) as caught:
        decode(data)
    return str(caught.value)


def wire(message: Message) -> list[Any]:
    """The array of a message, to be spoilt."""
    array: list[Any] = msgpack.unpackb(encode(message))
    return array


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_round_trip(kind: type[Message]) -> None:
    """A field that is lost, swapped or rounded on its way."""

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(values_of(kind))
    def check(message: Message) -> None:
        received = decode(encode(message))
        assert type(received) is kind
        assert received == message
        assert repr(received) == repr(message)  # True == 1, [1] != (1,)

    check()


def test_extreme_values_round_trip() -> None:
    """The largest seed, text and numbers that are allowed."""
    sampling = Sampling(5e-324, 2**63 - 1, stop_token_ids=(0, 2**63 - 1))
    for message in (
        Open(MAX_INT, 0, (), 0, MAX_INT, MAX_INT, sampling),
        Tokens(0, 0, tuple(range(200_000)), ("accepted",) * 200_000, contradicts=False),
        Failed("draft", 0, 0, "é" * MAX_TEXT),
        Finish(0, "stop", "", RequestMetrics(verifying=Spans([-1.7e308], [1.7e308]))),
    ):
        assert decode(encode(message)) == message


@fuzz(300)
@given(st.binary(max_size=60))
@example(b"")
@example(b"\xc1")
@example(b"\xdd\xff\xff\xff\xff")
def test_random_bytes_are_refused(data: bytes) -> None:
    """A port scanner, or a worker of another version, ends the coordinator."""
    refused(data)


@fuzz(300)
@given(MESSAGES, st.data())
def test_spoilt_messages_are_refused_or_are_messages(message: Message, data: st.DataObject) -> None:
    """A check that misses one place, and an exception that nobody catches."""
    good = encode(message)
    at = data.draw(st.integers(0, len(good) - 1))
    refused(good[:at])
    refused(good + b"\x00")
    changed = bytearray(good)
    changed[at] = data.draw(st.integers(0, 255))
    try:
        received = decode(bytes(changed))
    except ProtocolError:
        return
    assert decode(encode(received)) == received


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | TEXTS
    | st.binary(max_size=5)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=3)),
    lambda items: st.lists(items, max_size=4) | st.dictionaries(TEXTS, items, max_size=2),
    max_leaves=8,
)


@fuzz(300)
@given(MESSAGES, JUNK, st.data())
def test_fields_of_another_type_are_refused(
    message: Message, junk: Any, data: st.DataObject
) -> None:
    """What decode lets through is trusted by all that follows."""
    array = wire(message)
    array[data.draw(st.integers(0, len(array) - 1))] = junk
    try:
        received = decode(msgpack.packb(array))
    except ProtocolError:
        return
    hints = get_type_hints(type(received))
    for field in dataclasses.fields(received):
        value = getattr(received, field.name)
        if hints[field.name] is int:
            assert type(value) is int
            assert 0 <= value <= MAX_INT
        if hints[field.name] is float:
            assert math.isfinite(value)
    assert decode(encode(received)) == received


def with_law(ids: tuple[int, ...], chances: tuple[float, ...]) -> Block:
    return Block(0, 0, 0, 0, (1,), (0.5,), ("model",), (0.0,), (0.0,), (GuessLaw(ids, chances),))


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\x00"


def figures_of(counts: Counts | None = None, times: Times | None = None, pid: int = 1) -> Figures:
    """Those of a pipeline that has not begun."""
    return Figures("p", pid, (), 0.0, 0, 0, counts or Counts(), times or Times(), Recent(), (), ())


V = bytes([VERSION])
SPOILT: dict[str, bytes] = {
    "another version": msgpack.packb([VERSION + 1, 3, 0]),
    "a version that is true": msgpack.packb([True, 3, 0]),
    "a version that is a float": msgpack.packb([1.0, 3, 0]),
    "a tag too high": msgpack.packb([VERSION, 10**6]),
    "a tag below zero": msgpack.packb([VERSION, -1]),
    "a tag that is true": msgpack.packb([VERSION, True, *wire(Commit(0, 1, 1, 0, (), 1, 1))[2:]]),
    "no tag": msgpack.packb([VERSION]),
    "nothing": msgpack.packb([]),
    "no array": msgpack.packb(7),
    "a map": msgpack.packb({}),
    "a map with keys": msgpack.packb({1: 2}),
    "a field too few": msgpack.packb(wire(Close(1))[:-1]),
    "a field too many": msgpack.packb([*wire(Close(1)), 0]),
    "a field for no field": msgpack.packb([*wire(Shutdown()), None]),
    "true for an id": msgpack.packb([*wire(Close(1))[:-1], True]),
    "a float for an id": msgpack.packb([*wire(Close(1))[:-1], 1.0]),
    "a negative id": msgpack.packb([*wire(Close(1))[:-1], -1]),
    "a huge id": msgpack.packb([*wire(Close(1))[:-1], 2**63]),
    "nil for an id": msgpack.packb([*wire(Close(1))[:-1], None]),
    "an array for an id": msgpack.packb([*wire(Close(1))[:-1], [1]]),
    "an extension for an id": msgpack.packb([*wire(Close(1))[:-1], msgpack.ExtType(5, b"")]),
    "a time stamp for an id": msgpack.packb([*wire(Close(1))[:-1], msgpack.Timestamp(1)]),
    "a map for an id": msgpack.packb([*wire(Close(1))[:-1], {}]),
    "bytes for tokens": encode(Commit(0, 1, 1, 0, b"\x01", 1, 1)),  # type: ignore[arg-type]
    "true among tokens": encode(Commit(0, 1, 1, 0, (1, True), 1, 1)),
    "an unknown reason": msgpack.packb([*wire(Exhausted(0, 0, 0, "stop"))[:-1], "weather"]),
    "bytes for a reason": msgpack.packb([*wire(Exhausted(0, 0, 0, "stop"))[:-1], b"stop"]),
    "a text too long": encode(Failed("draft", 0, 0, "x" * (MAX_TEXT + 1))),
    "a text that is not UTF-8": encode(Failed("draft", 0, 0, "abc")).replace(b"abc", b"a\xffc"),
    "a block without times": encode(Block(0, 0, 0, 0, (1,), (0.5,), ("model",), (), ())),
    "a block with a confidence too few": encode(
        Block(0, 0, 0, 0, (1,), (), ("model",), (0.0,), (0.0,))
    ),
    "a block that began and never ended": encode(Block(0, 0, 0, 0, (), (), (), (0.0,), ())),
    "a confidence that is no number": encode(
        Block(0, 0, 0, 0, (1,), (math.nan,), ("model",), (0.0,), (0.0,))
    ),
    "an infinite time": encode(Block(0, 0, 0, 0, (1,), (0.5,), ("model",), (0.0,), (math.inf,))),
    "an integer for a time": encode(Block(0, 0, 0, 0, (1,), (0.5,), ("model",), (0,), (0.0,))),
    "laws for some of the tokens": encode(
        Block(
            0,
            0,
            0,
            0,
            (1, 2),
            (0.5,) * 2,
            ("model",) * 2,
            (0.0,) * 2,
            (0.0,) * 2,
            (GuessLaw((1,), (1.0,)),),
        )
    ),
    "a law that sums to less than 1": encode(with_law((1, 2), (0.5, 0.4))),
    "a law with a chance below 0": encode(with_law((1, 2), (1.5, -0.5))),
    "a law with a chance too few": encode(with_law((1, 2), (1.0,))),
    "a law that names a token twice": encode(with_law((1, 1), (0.5, 0.5))),
    "a law of nothing": encode(with_law((), ())),
    "log-probabilities of some tokens": encode(
        Verdict(0, 0, 0, 2, 1, 0.0, 0.0, 0.0, (TokenLogprobs(0.0, (), ()),))
    ),
    "an origin too few": encode(Tokens(0, 0, (1, 2), ("bonus",), contradicts=False)),
    "an origin that is none": encode(Tokens(0, 0, (1,), ("drafted",), False)),  # type: ignore[arg-type]
    "a number for true": encode(Tokens(0, 0, (), (), 1)),  # type: ignore[arg-type]
    "stretches that never ended": encode(
        Finish(0, "stop", "", RequestMetrics(drafting=Spans([1.0], [])))
    ),
    "a histogram with a count too few": encode(
        Stats(figures_of(times=Times(draft_step=Histogram((1.0,), [0]))))
    ),
    "verifications of other rows": encode(Stats(figures_of(times=Times(verification=[])))),
    "requests that ended for other reasons": encode(Stats(figures_of(Counts(finished=[1])))),
    "figures of no process": encode(Stats(figures_of(pid=-1))),
    "an array announced, not sent": b"\xdd\xff\xff\xff\xff",
    "a text announced, not sent": b"\x93" + V + b"\x03\xdb\xff\xff\xff\xff",
    "too many items": encode(Commit(0, 1, 1, 0, (0,) * (2**21 + 1), 1, 1)),
    "too many bytes": b"\x00" * (MAX_MESSAGE_BYTES + 1),
    "two messages": encode(Close(1)) * 2,
    "nested without end": nested(10**5),
    **{
        f"{depth} deep {place}": b"\x93" + head + nested(depth) + tail
        for depth in (10, 300, 500, 900, 990, 1000, 1020)
        for place, head, tail in (
            ("version", b"", b"\x03\x00"),
            ("tag", V, b"\x00"),
            ("field", V + b"\x03", b""),
        )
    },
}


@pytest.mark.parametrize("what", SPOILT)
def test_refused(what: str) -> None:
    """Each of these once got through somewhere, or raised what nobody caught."""
    reason = refused(SPOILT[what])
    assert reason
    assert len(reason) < 300


def test_refusal_of_much_is_quick() -> None:
    """Sixteen megabytes printed into an error message of eighty characters."""
    much = msgpack.packb([VERSION, 3, [[0] * 2**20, "x" * 2**20, b"y" * 2**20]])
    assert len(refused(much)) < 300


def test_every_message_has_a_tag_of_its_own() -> None:
    """A message that is added, and forgotten in the codec, fails when it is first sent."""
    assert sorted(_TAGS.values()) == list(range(len(KINDS)))
    assert set(_TAGS) == set(KINDS)
