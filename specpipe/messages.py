"""Every message between coordinator and workers, and its msgpack form.

On the wire a message is one msgpack array: [VERSION, tag, field, ...], the fields in the order of
the dataclass. `decode` believes nothing: version, tag, number, types and ranges of the fields are
checked, so that whatever comes out is a well-typed message. No pickle anywhere.

Positions count tokens from the beginning of the prompt. Times are seconds of the sender's
monotonic clock, which processes of one host share.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgpack

from specpipe.errors import ProtocolError
from specpipe.sampling import Sampling

VERSION = 1
MAX_MESSAGE_BYTES = 16 * 2**20
MAX_ITEMS = 2**21
MAX_TEXT = 4096
MAX_INT = 2**63 - 1

Role = Literal["draft", "target"]
ExhaustedReason = Literal["limit", "context", "stop"]


# -- coordinator to draft


@dataclass(frozen=True, slots=True)
class Open:
    """Begin, or begin again, to draft for a request.

    `tokens` are all committed, in-flight and waiting tokens, the first `committed_length` of them
    committed. The draft extends them up to `limit`, a length. Sets the draft's serial to `serial`.
    """

    request: int
    serial: int
    tokens: tuple[int, ...]
    committed_length: int
    limit: int
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Commit:
    """All tokens that became final with the serials first to last, from position `start` on."""

    request: int
    first_serial: int
    last_serial: int
    start: int
    tokens: tuple[int, ...]
    limit: int


# -- coordinator to target


@dataclass(frozen=True, slots=True)
class Extend:
    """Feed tokens at the positions from `start` on, and judge those from `verify_from` on.

    Answered by a Verdict iff start + len(tokens) >= verify_from, otherwise by Progress. Prefill,
    plain decoding, verification and the rebuilding of a lost cache are all this one command.
    """

    request: int
    extend_id: int
    start: int
    tokens: tuple[int, ...]
    verify_from: int
    sampling: Sampling


# -- coordinator to either


@dataclass(frozen=True, slots=True)
class Close:
    """Forget a request; answered by Closed, after which its slot is free."""

    request: int


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End the worker's loop."""


# -- either to coordinator


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker's first message: its model is loaded.

    `cores` are the CPU cores that all of its threads were read back to run on.
    """

    role: Role
    incarnation: int
    num_slots: int
    context_length: int
    vocab_size: int
    device: str
    cores: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Closed:
    """The request's slot is free."""

    role: Role
    request: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker cannot go on with a request; `cause` is one line for its user."""

    role: Role
    request: int
    incarnation: int
    cause: str


# -- draft to coordinator


@dataclass(frozen=True, slots=True)
class Opened:
    """The draft has read the request's tokens and is drafting."""

    request: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class Block:
    """Drafted tokens at the positions from `start` on, made after seeing `serial`.

    `confidences` are the draft's chances for its own tokens. `begun` and `ended` say when the draft
    computed since its last block; the last len(tokens) stretches made these tokens.
    """

    request: int
    incarnation: int
    serial: int
    start: int
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]
    begun: tuple[float, ...]
    ended: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The draft can't go on before a commit later than `serial`."""

    request: int
    incarnation: int
    serial: int
    reason: ExhaustedReason


@dataclass(frozen=True, slots=True)
class Resync:
    """The draft missed a commit and asks for Open."""

    request: int
    incarnation: int


# -- target to coordinator


@dataclass(frozen=True, slots=True)
class Verdict:
    """`accepted` of the judged tokens stand, and `token` follows them.

    `received`, `begun` and `ended`: when the Extend arrived, and when its forward pass ran.
    """

    request: int
    incarnation: int
    extend_id: int
    accepted: int
    token: int
    received: float
    begun: float
    ended: float


@dataclass(frozen=True, slots=True)
class Progress:
    """An Extend that judged nothing is done; the cache holds `length` tokens."""

    request: int
    incarnation: int
    extend_id: int
    length: int


ToDraft = Open | Commit | Close | Shutdown
ToTarget = Extend | Close | Shutdown
FromWorker = Ready | Closed | Failed | Opened | Block | Exhausted | Resync | Verdict | Progress
Message = ToDraft | ToTarget | FromWorker

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
)
_TAGS = {cls: tag for tag, cls in enumerate(_TYPES)}

_Reader = Callable[[Any], Any]


def _read_int(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_INT:
        raise ProtocolError(f"expected an integer from 0 to {MAX_INT}, got {value!r:.80}")
    return value


def _read_float(value: Any) -> float:
    if type(value) is not float or not math.isfinite(value):
        raise ProtocolError(f"expected a finite number, got {value!r:.80}")
    return value


def _read_text(value: Any) -> str:
    if type(value) is not str or len(value) > MAX_TEXT:
        raise ProtocolError(f"expected a text of at most {MAX_TEXT} characters, got {value!r:.80}")
    return value


def _reader(annotation: Any) -> _Reader:
    """The function that checks and converts a wire value for a field of this type."""
    if annotation is int:
        return _read_int
    if annotation is float:
        return _read_float
    if annotation is str:
        return _read_text
    if annotation is Sampling:
        return _record_reader(Sampling)
    if get_origin(annotation) is Literal:
        return _literal_reader(get_args(annotation))
    if get_origin(annotation) is tuple:
        return _tuple_reader(_reader(get_args(annotation)[0]))
    raise TypeError(f"no wire form for {annotation}")


def _literal_reader(allowed: tuple[str, ...]) -> _Reader:
    def read(value: Any) -> str:
        if type(value) is not str or value not in allowed:
            raise ProtocolError(f"expected one of {', '.join(allowed)}, got {value!r:.80}")
        return value

    return read


def _tuple_reader(read_item: _Reader) -> _Reader:
    def read(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise ProtocolError(f"expected an array, got {value!r:.80}")
        return tuple([read_item(item) for item in value])

    return read


def _record_reader(cls: type[Any]) -> _Reader:
    hints = get_type_hints(cls)
    readers = tuple(_reader(hints[f.name]) for f in fields(cls))

    def read(value: Any) -> Any:
        if type(value) is not list or len(value) != len(readers):
            raise ProtocolError(f"expected {cls.__name__} with {len(readers)} fields")
        return cls(*[read_field(item) for read_field, item in zip(readers, value, strict=True)])

    return read


_READERS = tuple(_record_reader(cls) for cls in _TYPES)
_FIELDS = {cls: tuple(f.name for f in fields(cls)) for cls in (*_TYPES, Sampling)}


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
    if version != VERSION:
        raise ProtocolError(f"message version {version!r:.80}; this side speaks {VERSION}")
    if type(tag) is not int or not 0 <= tag < len(_READERS):
        raise ProtocolError(f"unknown message tag {tag!r:.80}")
    message: Message = _READERS[tag](values)
    if isinstance(message, Block):
        _check_block(message)
    return message


def _check_block(block: Block) -> None:
    count = len(block.tokens)
    if count != len(block.confidences) or not count <= len(block.begun) == len(block.ended):
        raise ProtocolError("a block whose tokens, confidences and times don't match in number")
