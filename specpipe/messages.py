"""Messages between the hub and the program that embeds it, and all messages there are.

Those between coordinator and workers are in worker_messages.py. Positions and times are as there.
"""

from dataclasses import dataclass, field
from typing import Literal

from specpipe.figures import Figures
from specpipe.metrics import RequestMetrics
from specpipe.sampling import Sampling, TokenLogprobs
from specpipe.stopping import FinishReason
from specpipe.worker_messages import (
    FromWorker,
    Ready,
    Role,
    Said,
    Shutdown,
    ToDraft,
    ToTarget,
)

Origin = Literal["accepted", "recovered", "bonus"]
"""What a committed token is: a guess that stands, the target's own in place of one that doesn't, or
the target's own after a block that stands as a whole, be it empty."""


# -- user to hub


@dataclass(frozen=True, slots=True)
class Submit:
    """A new request: continue `tokens`, fewer than the target's context, by up to `max_tokens`.

    It also ends where one of the texts `stop` appears in the answer.
    """

    request: int
    tokens: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Abort:
    """The user wants no more of a request."""

    request: int


@dataclass(frozen=True, slots=True)
class UsePolicy:
    """Go by this dispatch rule from now on; what others have learned is kept for their return."""

    policy: str


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What each token adds to a text, by id: UTF-8, perhaps a part of a character."""

    token_bytes: tuple[bytes, ...]


# -- supervisor to hub


@dataclass(frozen=True, slots=True)
class Attach:
    """A worker's incarnation will connect to this address; answered by Attached.

    Over TCP, the hub's end holds `secret_key`, and only the worker with the public key `admitted`
    gets in; for a Unix socket both are empty.
    """

    role: Role
    incarnation: int
    address: str
    secret_key: bytes = field(default=b"", repr=False)
    admitted: bytes = b""


@dataclass(frozen=True, slots=True)
class Lost:
    """This incarnation of a worker is gone, or not fit for work: `cause` is one line.

    Either end may find out, the supervisor or the hub, and tells the other.
    """

    role: Role
    incarnation: int
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Gone:
    """A worker is gone and will not come back."""

    role: Role
    cause: str


# -- hub to supervisor


@dataclass(frozen=True, slots=True)
class Attached:
    """The hub listens at `address`, its port included; or it can't, for the `cause`."""

    role: Role
    incarnation: int
    address: str
    cause: str = ""


# -- hub to user


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens became final; `start` counts from the beginning of the prompt.

    `origins`: where each comes from. `contradicts`: whether they are not what was drafted in their
    place, so that the draft has to go back (a rollback).
    """

    request: int
    start: int
    tokens: tuple[int, ...]
    origins: tuple[Origin, ...]
    contradicts: bool
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """A request ended; `cause` is one line, empty unless the reason is an error."""

    request: int
    reason: FinishReason
    cause: str
    metrics: RequestMetrics


@dataclass(frozen=True, slots=True)
class Stats:
    """What the pipeline came to so far; about once a second while there is work.

    `last`: whether the hub ends now.
    """

    figures: Figures
    last: bool = False


# -- between the two ends of a channel, which keep these to themselves


@dataclass(frozen=True, slots=True)
class Ping:
    """What does your clock say? Mine said `sent`."""

    sent: float


@dataclass(frozen=True, slots=True)
class Pong:
    """It said `clock` when the Ping of `sent` came."""

    sent: float
    clock: float


ToHub = Vocabulary | UsePolicy | Submit | Abort | Attach | Lost | Gone | Shutdown
FromHub = Tokens | Finish | Ready | Lost | Attached | Stats
Message = ToDraft | ToTarget | FromWorker | Said | ToHub | FromHub | Ping | Pong
