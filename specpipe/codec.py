"""The msgpack form of the messages.

On the wire a message is one array: [VERSION, tag, field, ...], the fields in the order of the
dataclass. `decode` believes nothing: version, tag, number, types and ranges of the fields are
checked, so that whatever comes out is a well-typed message. No pickle anywhere.
"""

import math
from collections.abc import Callable
from dataclasses import fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgpack

from specpipe.errors import ProtocolError
from specpipe.figures import (
    ROWS,
    Counts,
    Figures,
    Histogram,
    Recent,
    SequenceFigures,
    Setting,
    Times,
    WorkerFigures,
)
from specpipe.messages import (
    Abort,
    Attach,
    Attached,
    Finish,
    Gone,
    Lost,
    Message,
    Ping,
    Pong,
    Stats,
    Submit,
    Tokens,
    UsePolicy,
    Vocabulary,
)
from specpipe.metrics import RequestMetrics, SourceCounts, Spans
from specpipe.sampling import GuessLaw, Sampling, TokenLogprobs
from specpipe.stopping import FINISH_REASONS
from specpipe.worker_messages import (
    MAX_TEXT,
    Block,
    Close,
    Closed,
    Commit,
    Computing,
    Exhausted,
    Extend,
    Failed,
    LookedUp,
    Open,
    Opened,
    Proceed,
    Progress,
    Ready,
    Resync,
    Said,
    Shutdown,
    Verdict,
)

VERSION = 9
MAX_MESSAGE_BYTES = 16 * 2**20
MAX_ITEMS = 2**21
MAX_INT = 2**63 - 1

# The position is the tag: append, never reorder, and raise VERSION for any other change.
_TYPES: tuple[type[Message], ...] = (
    Open,
    Commit,
    Extend,
    Close,
    Shutdown,
    Ready,
    Closed,
    Failed,
    Opened,
    Block,
    Exhausted,
    Resync,
    Verdict,
    Progress,
    Submit,
    Abort,
    Attach,
    Lost,
    Gone,
    Tokens,
    Finish,
    Vocabulary,
    Computing,
    UsePolicy,
    Attached,
    Ping,
    Pong,
    Stats,
    Said,
    Proceed,
)
_RECORDS = (
    Sampling,
    GuessLaw,
    TokenLogprobs,
    LookedUp,
    Spans,
    SourceCounts,
    RequestMetrics,
    Histogram,
    Counts,
    Times,
    Recent,
    WorkerFigures,
    SequenceFigures,
    Setting,
    Figures,
)  # parts of messages
_TAGS = {cls: tag for tag, cls in enumerate(_TYPES)}

_Reader = Callable[[Any], Any]


def _shown(value: Any) -> str:
    """A wire value for an error message; an array by its size, as it may be too deep to print."""
    if isinstance(value, list):
        return f"an array of {len(value)}"
    return repr(value[:80] if isinstance(value, str | bytes) else value)[:80]


def _read_int(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_INT:
        raise ProtocolError(f"expected an integer from 0 to {MAX_INT}, got {_shown(value)}")
    return value


def _read_float(value: Any) -> float:
    if type(value) is not float or not math.isfinite(value):
        raise ProtocolError(f"expected a finite number, got {_shown(value)}")
    return value


def _read_text(value: Any) -> str:
    if type(value) is not str or len(value) > MAX_TEXT:
        raise ProtocolError(
            f"expected a text of at most {MAX_TEXT} characters, got {_shown(value)}"
        )
    return value


def _read_bytes(value: Any) -> bytes:
    if type(value) is not bytes or len(value) > MAX_TEXT:
        raise ProtocolError(f"expected at most {MAX_TEXT} bytes, got {_shown(value)}")
    return value


def _read_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise ProtocolError(f"expected true or false, got {_shown(value)}")
    return value


_PLAIN: dict[Any, _Reader] = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: _read_text,
    bytes: _read_bytes,
}


def _reader(annotation: Any) -> _Reader:
    """The function that checks and converts a wire value for a field of this type."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if annotation in _RECORDS:
        return _record_reader(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _literal_reader(arguments)
    if origin in {tuple, list}:
        return _array_reader(origin, _reader(arguments[0]))
    if len(arguments) == 2 and arguments[1] is NoneType:
        return _optional_reader(_reader(arguments[0]))
    raise TypeError(f"no wire form for {annotation}")


def _literal_reader(allowed: tuple[str, ...]) -> _Reader:
    def read(value: Any) -> str:
        if type(value) is not str or value not in allowed:
            raise ProtocolError(f"expected one of {', '.join(allowed)}, got {_shown(value)}")
        return value

    return read


def _array_reader(kind: type[tuple[Any, ...]] | type[list[Any]], read_item: _Reader) -> _Reader:
    def read(value: Any) -> tuple[Any, ...] | list[Any]:
        if type(value) is not list:
            raise ProtocolError(f"expected an array, got {_shown(value)}")
        return kind([read_item(item) for item in value])

    return read


def _optional_reader(read_value: _Reader) -> _Reader:
    return lambda value: None if value is None else read_value(value)


def _record_reader(cls: type[Any]) -> _Reader:
    hints = get_type_hints(cls)
    readers = tuple(_reader(hints[f.name]) for f in fields(cls))

    def read(value: Any) -> Any:
        if type(value) is not list or len(value) != len(readers):
            raise ProtocolError(f"expected {cls.__name__} with {len(readers)} fields")
        record = cls(*[read_field(item) for read_field, item in zip(readers, value, strict=True)])
        if check := _CHECKS.get(cls):
            check(record)
        return record

    return read


def _check_block(block: Block) -> None:
    count = len(block.tokens)
    if not count == len(block.confidences) == len(block.sources):
        raise ProtocolError("a block whose tokens, confidences and sources don't match in number")
    if not count <= len(block.begun) == len(block.ended):
        raise ProtocolError("a block whose tokens and times don't match in number")
    if len(block.laws) not in {0, count}:
        raise ProtocolError(f"a block of {count} tokens with {len(block.laws)} laws")


def _check_law(law: GuessLaw) -> None:
    if len(law.ids) != len(law.chances) or len(set(law.ids)) != len(law.ids):
        raise ProtocolError("a law whose tokens and chances don't match, or that names one twice")
    if not all(chance > 0 for chance in law.chances) or abs(sum(law.chances) - 1) > 1e-6:
        raise ProtocolError(f"a law of {len(law.ids)} tokens whose chances don't sum to 1")


def _check_verdict(verdict: Verdict) -> None:
    if len(verdict.logprobs) not in {0, verdict.accepted + 1}:
        raise ProtocolError("a verdict whose log-probabilities don't match its tokens in number")
    if verdict.block and verdict.accepted > len(verdict.block):
        raise ProtocolError(
            f"{verdict.accepted} tokens of a block of {len(verdict.block)} accepted"
        )


def _check_tokens(tokens: Tokens) -> None:
    if len(tokens.origins) != len(tokens.tokens):
        raise ProtocolError("committed tokens and their origins don't match in number")


def _check_histogram(histogram: Histogram) -> None:
    if len(histogram.counts) != len(histogram.bounds) + 1:
        raise ProtocolError("a histogram whose bounds and counts don't match in number")


def _check_counts(counts: Counts) -> None:
    if len(counts.finished) != len(FINISH_REASONS):
        raise ProtocolError("finished requests whose reasons are others than ours")


def _check_times(times: Times) -> None:
    if len(times.verification) != len(ROWS):
        raise ProtocolError("verifications whose rows are others than ours")


def _check_spans(spans: Spans) -> None:
    if len(spans.begun) != len(spans.ended):
        raise ProtocolError("stretches of time that don't begin and end in equal number")


_CHECKS: dict[type[Any], Callable[[Any], None]] = {
    Block: _check_block,
    GuessLaw: _check_law,
    Verdict: _check_verdict,
    Tokens: _check_tokens,
    Spans: _check_spans,
    Histogram: _check_histogram,
    Counts: _check_counts,
    Times: _check_times,
}
_READERS = tuple(_record_reader(cls) for cls in _TYPES)
_FIELDS = {cls: tuple(f.name for f in fields(cls)) for cls in (*_TYPES, *_RECORDS)}


def _wire(value: Any) -> Any:
    """A dataclass as the list of its fields."""
    return [getattr(value, name) for name in _FIELDS[type(value)]]


def encode(message: Message) -> bytes:
    """The wire form of a message."""
    packed: bytes = msgpack.packb([VERSION, _TAGS[type(message)], *_wire(message)], default=_wire)
    return packed


def decode(data: bytes) -> Message:
    """The message that `data` is the wire form of.

    Raises:
        ProtocolError: if it is none: wrong version, unknown tag, malformed, too large, or fields
            that don't fit together.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"a message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} allowed")
    try:
        wire = msgpack.unpackb(
            data, use_list=True, max_array_len=MAX_ITEMS, max_map_len=0, max_ext_len=0
        )
    except Exception as error:  # msgpack raises a dozen types, ValueError's children and others
        raise ProtocolError(f"not a msgpack message: {error}") from error
    if type(wire) is not list or len(wire) < 2:
        raise ProtocolError("a message is an array of version, tag and fields")
    version, tag, *values = wire
    if type(version) is not int or version != VERSION:
        raise ProtocolError(f"message version {_shown(version)}; this side speaks {VERSION}")
    if type(tag) is not int or not 0 <= tag < len(_READERS):
        raise ProtocolError(f"unknown message tag {_shown(tag)}")
    message: Message = _READERS[tag](values)
    return message
